"""The position-wise feed-forward layer, plain or gated."""

import functools
import operator

import functools
import operator

from bert4x.backend import get_activation, keras, runtime
from bert4x.layers.base import Layer, register


@register
class FeedForward(Layer):
    """act(x Wi + bi) Wo + bo; with a list of activations, the product of f_j(x W_j + b_j) before Wo.

    Args:
        units: inner width I.
        activation: name or function, or a list of them for a gated layer, e.g. ['gelu_tanh', 'linear'].
        use_bias: biases in all the maps.
        remat: recompute the inner activations in the backward pass (less memory, more time).
    Shapes: [B, T, D] -> [B, T, D].
    Source: arXiv:1706.03762 eq. 2; arXiv:2002.05202 for the gated form.
    """

    def __init__(
        self,
        units,
        activation="relu",
        *,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        names = activation if isinstance(activation, (list, tuple)) else [activation]
        self.units, self.use_bias, self.remat = units, use_bias, remat
        self.activations = [get_activation(name) for name in names]
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        options = {"use_bias": self.use_bias, "kernel_initializer": self.kernel_initializer}
        for name, activation in zip(self._inner_names(), self.activations, strict=True):
            self.add_dense(name, self.units, activation=activation, **options).build(input_shape)
        self.add_dense("out", input_shape[-1], **options).build((*input_shape[:-1], self.units))

    def _inner_names(self):
        return [f"inner_{i}" for i in range(len(self.activations))]

    def call(self, inputs):
        if self.remat:
            return runtime.rematerialized(self, self._compute, inputs)
        return self._compute(inputs)

    def _compute(self, x):
        gates = [getattr(self, name)(x) for name in self._inner_names()]
        return self.out(functools.reduce(operator.mul, gates))

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        activations = [keras.activations.serialize(f) for f in self.activations]
        return {
            **super().get_config(),
            "units": self.units,
            "activation": activations if len(activations) > 1 else activations[0],
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "remat": self.remat,
        }
