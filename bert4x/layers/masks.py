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


class _ApplicationMask(_MaskLayer):
    """Which tokens see which: T tokens one another, or T new tokens the S slots of a cache.

    With a cache the tokens stand in the slots from `start`, and the rows of the batch begin at the slots `padding`.

    Shapes: ids [B, T] -> bool [B or 1, T, T]; with start [], padding [B] and keys [B, S, ...] -> bool [B, T, S].
    """

    def call(self, inputs, start=None, padding=None, keys=None):
        new = ops.arange(ops.shape(inputs)[1])
        if start is None:
            return self.seen(inputs, new, new, 0)
        slots = ops.arange(ops.shape(keys)[1])
        seen = self.seen(inputs, start + new, slots, start)
        return ops.logical_and(seen, (slots[None, :] >= padding[:, None])[:, None, :])

    def seen(self, ids, queries, slots, start):
        """bool [B or 1, T, S]: which slots [S] the tokens [B, T] in the slots `queries` [T] see; the first is start."""
        raise NotImplementedError(f"{type(self).__name__} must define seen")

    def compute_output_spec(self, inputs, start=None, padding=None, keys=None):
        if start is None:
            return super().compute_output_spec(inputs)
        return keras.KerasTensor((*inputs.shape[:2], keys.shape[1]), dtype="bool")


@register
class CausalMask(_ApplicationMask):
    """Each position sees itself and what stands before it: j <= i, and with a window j > i - window.

    Args:
        window: number of positions seen, at least 1; None: all (arXiv:2004.05150).
    Shapes: any [B, T, ...] -> bool [1, T, T]; over a cache bool [B, T, S].
    """

    def __init__(self, *, window=None, **kwargs):
        super().__init__(**kwargs)
        self.window = window

    def seen(self, ids, queries, slots, start):
        distance = queries[:, None] - slots[None, :]
        seen = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        return seen[None]

    def get_config(self):
        return {**super().get_config(), "window": self.window}

    def _batch(self, input_shape):
        return 1


@register
class UniLMMask(_ApplicationMask):
    """Source tokens (segment 0) see the whole source, target tokens (segment 1) the source and what precedes them.

    With c the cumulative sum of the segment ids: c[j] <= c[i]. Padding after the target has the c of the last target
    token, so this mask needs the padding mask beside it. Over a cache the new tokens see all that precedes them; what
    stands there does not see them, so the whole source must come at once.

    Shapes: int [B, T] segment ids -> bool [B, T, T]; over a cache bool [B, T, S].
    Source: arXiv:1905.03197.
    """

    def seen(self, ids, queries, slots, start):
        level = ops.cumsum(ops.cast(ids, "int32"), axis=1)
        last = ops.shape(ids)[1] - 1
        place = slots - start  # among the new tokens
        key_level = ops.take(level, ops.clip(place, 0, last), axis=1)
        among = (key_level[:, None, :] <= level[:, :, None]) & (place <= last)
        return among | (place < 0)


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
