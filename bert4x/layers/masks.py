"""Attention masks as layers: boolean tensors, True = query i may see key j."""

from bert4x.backend import keras, ops
from bert4x.layers.base import Layer, register


class _MaskLayer(Layer):
    """A layer whose output is a boolean mask, so it carries no padding mask itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (self._batch(input_shape), input_shape[1], input_shape[1])

    def _batch(self, input_shape):
        return input_shape[0]

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype="bool")


@register
class CausalMask(_MaskLayer):
    """Each position sees itself and what stands before it: j <= i, and with a window j > i - window.

    Args:
        window: number of positions seen, at least 1; None: all (arXiv:2004.05150).
    Shapes: any [B, T, ...] -> bool [1, T, T].
    """

    def __init__(self, *, window=None, **kwargs):
        super().__init__(**kwargs)
        self.window = window

    def call(self, inputs):
        position = ops.arange(ops.shape(inputs)[1])
        distance = position[:, None] - position[None, :]
        seen = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        return seen[None]

    def get_config(self):
        return {**super().get_config(), "window": self.window}

    def _batch(self, input_shape):
        return 1


@register
class UniLMMask(_MaskLayer):
    """Source tokens (segment 0) see the whole source, target tokens (segment 1) the source and what precedes them.

    With c the cumulative sum of the segment ids: c[j] <= c[i]. Padding after the target has the c of the last target
    token, so this mask needs the padding mask beside it.

    Shapes: int [B, T] segment ids -> bool [B, T, T].
    Source: arXiv:1905.03197.
    """

    def call(self, inputs):
        level = ops.cumsum(ops.cast(inputs, "int32"), axis=1)
        return level[:, None, :] <= level[:, :, None]


@register
class CombinedMask(_MaskLayer):
    """Logical AND of masks given as [B, T, T] or [B, T] (keys), any number type.

    Shapes: list of [B or 1, T, T] or [B, T] -> bool [B, T, T] or [B, 1, T].
    """

    def call(self, inputs):
        combined = None
        for mask in inputs:
            mask = ops.cast(mask, "bool")
            mask = mask[:, None, :] if len(mask.shape) == 2 else mask
            combined = mask if combined is None else ops.logical_and(combined, mask)
        return combined

    def compute_output_spec(self, inputs):
        shapes = [(m.shape[0], 1, m.shape[1]) if len(m.shape) == 2 else tuple(m.shape) for m in inputs]
        shape = shapes[0]
        for other in shapes[1:]:
            shape = tuple(b if a == 1 else a for a, b in zip(shape, other, strict=True))
        return keras.KerasTensor(shape, dtype="bool")
