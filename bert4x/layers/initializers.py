"""Initialisers that can wait: a checkpoint that is about to be loaded makes random values a waste."""

from bert4x.backend import keras
from bert4x.layers.base import register


@register
class TruncatedNormal(keras.initializers.TruncatedNormal):
    """Keras' truncated normal; gives zeros while `deferred`, and `clone` keeps that state.

    Use one object (or clone) per variable: a Keras initialiser gives the same values at each call.
    """

    deferred = False

    def __call__(self, shape, dtype=None):
        if self.deferred:
            return keras.ops.zeros(shape, dtype=dtype)
        return super().__call__(shape, dtype=dtype)

    def clone(self):
        copy = super().clone()
        copy.deferred = self.deferred
        return copy


@register
class DepthScaledNormal(TruncatedNormal):
    """Truncated normal of standard deviation 1.1368472 / sqrt(width * depth), as RoFormerV2 starts.

    The width is the first axis of the variable, or the second where the first is a vocabulary or shorter than 10.

    Args:
        depth: number of blocks.
        vocab_size: rows of the token table.
    """

    def __init__(self, depth, vocab_size, *, seed=None):
        super().__init__(stddev=1.0, seed=seed)
        self.depth, self.vocab_size = depth, vocab_size

    def __call__(self, shape, dtype=None):
        second = len(shape) > 1 and (shape[0] == self.vocab_size or shape[0] < 10)
        width = shape[1] if second else shape[0]
        return super().__call__(shape, dtype=dtype) * (1.1368472 * (width * self.depth) ** -0.5)

    def get_config(self):
        return {"depth": self.depth, "vocab_size": self.vocab_size, "seed": super().get_config()["seed"]}
