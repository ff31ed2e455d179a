"""Pooling over the length axis that honours masks."""

from bert4x.backend import keras, masked_logit, ops
from bert4x.layers.base import Layer, register


class _Pooling(Layer):
    """[B, T, D] -> [B, D]; the output has no mask."""

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def compute_output_spec(self, inputs, mask=None):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)


@register
class FirstToken(_Pooling):
    """The vector at position 0, e.g. [CLS]. Shapes: [B, T, D] -> [B, D]."""

    def call(self, inputs, mask=None):
        return inputs[:, 0]


@register
class GlobalAveragePooling1D(_Pooling):
    """Mean over the unmasked positions: sum(x m) / sum(m); zeros where all is masked.

    Shapes: [B, T, D] -> [B, D].
    """

    def call(self, inputs, mask=None):
        if mask is None:
            return ops.mean(inputs, axis=1)
        weight = ops.cast(mask, inputs.dtype)[:, :, None]
        return ops.sum(inputs * weight, axis=1) / ops.maximum(ops.sum(weight, axis=1), 1)


@register
class GlobalMaxPooling1D(_Pooling):
    """Maximum over the unmasked positions; zeros where all is masked.

    Shapes: [B, T, D] -> [B, D].
    """

    def call(self, inputs, mask=None):
        if mask is None:
            return ops.max(inputs, axis=1)
        mask = ops.cast(mask, "bool")[:, :, None]
        highest = ops.max(ops.where(mask, inputs, masked_logit(inputs.dtype)), axis=1)
        return ops.where(ops.any(mask, axis=1), highest, 0)
