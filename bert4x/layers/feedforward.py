"""The position-wise feed-forward layer, plain or gated."""

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
        dropout: rate in [0, 1) before Wo, used in training only (T5).
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
        dropout=0.0,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        names = activation if isinstance(activation, (list, tuple)) else [activation]
        self.units, self.use_bias, self.remat = units, use_bias, remat
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.activations = [get_activation(name) for name in names]
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        options = {"use_bias": self.use_bias, "kernel_initializer": self.kernel_initializer}
        for name, activation in zip(self._inner_names(), self.activations, strict=True):
            self.add_dense(name, self.units, input_shape, activation=activation, **options)
        self.add_dense("out", input_shape[-1], (*input_shape[:-1], self.units), **options)

    def _inner_names(self):
        return [f"inner_{i}" for i in range(len(self.activations))]

    def call(self, inputs, training=None):
        compute = functools.partial(self._compute, training=training)
        return runtime.rematerialized(self, compute, inputs) if self.remat else compute(inputs)

    def _compute(self, x, *, training):
        gates = [getattr(self, name)(x) for name in self._inner_names()]
        return self.out(self.dropout(functools.reduce(operator.mul, gates), training=training))

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        activations = [keras.activations.serialize(f) for f in self.activations]
        return {
            **super().get_config(),
            "units": self.units,
            "activation": activations if len(activations) > 1 else activations[0],
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "dropout": self.dropout.rate,
            "remat": self.remat,
        }
