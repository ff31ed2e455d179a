"""Layer normalisation, conditional layer normalisation, and the affine part alone."""

from bert4x.backend import get_activation, keras, ops
from bert4x.layers.base import Layer, register


@register
class ScaleOffset(Layer):
    """Affine map of the last axis: y = x gamma + beta, optionally conditional.

    Conditional: c' = act(c Wh) if `hidden_units` is set, gamma_c = gamma + c' Wg, beta_c = beta + c' Wb. Wg and Wb
    start at zero, so that a pretrained layer is unchanged until they are trained.

    Args:
        scale, offset: True for a weight, a number for a constant factor or shift, False for none.
        conditional: the inputs are [x, c].
        hidden_units: width of the projected condition.
        hidden_activation: its activation.
    Shapes: x [B, T, D] (or [..., D]), c [B, C] or [B, T, C]; returns the shape of x.
    Masks: that of x; c is never masked.
    Source: kexue.fm archives 7124.
    """

    def __init__(
        self,
        scale=True,
        offset=True,
        *,
        conditional=False,
        hidden_units=None,
        hidden_activation="linear",
        hidden_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.scale, self.offset, self.conditional = scale, offset, conditional
        self.hidden_units = hidden_units
        self.hidden_activation = get_activation(hidden_activation)
        self.hidden_initializer = keras.initializers.get(hidden_initializer)

    def build(self, input_shape):
        x_shape = input_shape[0] if self.conditional else input_shape
        width = x_shape[-1]
        # beta before gamma: the order of the checkpoint tables. No autocast: the arithmetic is float32.
        if self.offset is True:
            self.beta = self.add_weight(name="beta", shape=(width,), initializer="zeros", autocast=False)
        if self.scale is True:
            self.gamma = self.add_weight(name="gamma", shape=(width,), initializer="ones", autocast=False)
        if self.conditional:
            self._build_condition(width, input_shape[1])

    def _build_condition(self, width, shape):
        if self.hidden_units is not None:
            self.add_dense(
                "hidden_dense",
                self.hidden_units,
                shape,
                activation=self.hidden_activation,
                use_bias=False,
                kernel_initializer=self.hidden_initializer,
            )
            shape = (*shape[:-1], self.hidden_units)
        for name, wanted in (("beta_dense", self.offset), ("gamma_dense", self.scale)):
            if wanted is not False:
                self.add_dense(name, width, shape, use_bias=False, kernel_initializer="zeros")

    def call(self, inputs):
        x, condition = inputs if self.conditional else (inputs, None)
        y = self.affine(ops.cast(x, "float32"), condition)
        return ops.cast(y, self.compute_dtype)

    def affine(self, x, condition):
        """x gamma + beta in float32, x float32 [..., D]."""
        if self.conditional:
            condition = self._spread(condition, len(x.shape))
        if self.scale is not False:
            x = x * self._factor("gamma", self.scale, condition)
        if self.offset is not False:
            x = x + self._factor("beta", self.offset, condition)
        return x

    def _spread(self, condition, rank):
        """[B, C] -> [B, 1, C], so that it serves every position."""
        while len(condition.shape) < rank:
            condition = ops.expand_dims(condition, 1)
        return self.hidden_dense(condition) if self.hidden_units is not None else condition

    def _factor(self, name, setting, condition):
        value = ops.cast(getattr(self, name), "float32") if setting is True else float(setting)
        if condition is None:
            return value
        return value + ops.cast(getattr(self, f"{name}_dense")(condition), "float32")

    def compute_output_shape(self, input_shape):
        return input_shape[0] if self.conditional else input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "scale": self.scale,
            "offset": self.offset,
            "conditional": self.conditional,
            "hidden_units": self.hidden_units,
            "hidden_activation": keras.activations.serialize(self.hidden_activation),
            "hidden_initializer": keras.initializers.serialize(self.hidden_initializer),
        }


@register
class LayerNormalization(ScaleOffset):
    """Normalise the last axis, then scale and shift; optionally conditional (see `ScaleOffset`).

    y = x - mean(x) if `zero_mean`;  y = y / sqrt(mean(y^2) + epsilon) if `unit_variance`;  y gamma + beta.
    `zero_mean=False, offset=False` is RMSNorm. Computed in float32 whatever the dtype policy: 1e-12 underflows in
    float16. The mean of squares is written out because Keras' own layer has wrong second derivatives on TensorFlow.

    Args:
        epsilon: added to the variance; None means 1e-12.
    Shapes, masks: as `ScaleOffset`.
    Source: arXiv:1607.06450; arXiv:1910.07467 (RMSNorm).
    """

    def __init__(self, zero_mean=True, unit_variance=True, *, epsilon=None, **kwargs):
        super().__init__(**kwargs)
        self.zero_mean, self.unit_variance = zero_mean, unit_variance
        self.epsilon = 1e-12 if epsilon is None else epsilon

    def call(self, inputs):
        x, condition = inputs if self.conditional else (inputs, None)
        y = ops.cast(x, "float32")
        if self.zero_mean:
            y = y - ops.mean(y, axis=-1, keepdims=True)
        if self.unit_variance:
            y = y * ops.rsqrt(ops.mean(ops.square(y), axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(self.affine(y, condition), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "zero_mean": self.zero_mean,
            "unit_variance": self.unit_variance,
            "epsilon": self.epsilon,
        }
