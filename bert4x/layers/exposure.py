"""What a decoder in training sees instead of the true tokens: random tokens, its own outputs."""

from bert4x.backend import keras, ops
from bert4x.layers.base import Layer, register


@register
class RandomReplacement(Layer):
    """Replaces tokens of a decoder's input by others of the same sample, in training only.

    With probability `keep` a row stays as it is; else each of its tokens is replaced with probability `rate` by one
    drawn uniformly from its pool, which may be the same token. Compare the scores with the original ids.
    `bert4x.snippets.random_replacement` does the same to the data.

    Args:
        rate, keep: probabilities.
        pool: "target" draws from the target alone, "all" from the whole row.
        special: ids that are neither replaced nor drawn: padding, start, [SEP].
        seed: integer; drawn if absent.
    Shapes: ids int [B, T]; or [ids, target], target 0/1 [B, T] being where tokens may be replaced (UniLM's segment
        ids); returns int [B, T].
    Source: kexue.fm archives 7259.
    """

    def __init__(self, rate=0.3, keep=0.5, *, pool="target", special=(0,), seed=None, **kwargs):
        super().__init__(**kwargs)
        if pool not in ("target", "all"):
            raise ValueError(f"pool must be 'target' or 'all'; got {pool!r}")
        self.rate, self.keep, self.pool, self.special, self.seed = rate, keep, pool, list(special), seed
        self.autocast = False
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=None):
        ids, target = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        ids = ops.cast(ids, "int32")
        if not training:
            return ids
        ordinary = ops.ones_like(ids, dtype="bool")
        for number in self.special:
            ordinary = ops.logical_and(ordinary, ids != number)
        replaceable = ordinary if target is None else ops.logical_and(ordinary, target != 0)
        others = self._drawn_from(ids, replaceable if self.pool == "target" else ordinary)
        chosen = ops.logical_and(self._uniform(ids) < self.rate, self._uniform(ids[:, :1]) >= self.keep)
        return ops.where(ops.logical_and(replaceable, chosen), others, ids)

    def _drawn_from(self, ids, pool):
        """For each place a token of a random place in its row's pool, [B, T]."""
        # Places in the pool first, in order; then the number of one of them for each place.
        length = ops.shape(ids)[1]
        places = ops.broadcast_to(ops.arange(length, dtype="int32"), ops.shape(ids))
        order = ops.argsort(ops.where(pool, places, places + length), axis=1)
        count = ops.sum(ops.cast(pool, "float32"), axis=1, keepdims=True)
        # min: a product that float32 rounds up to the count; max: an empty pool, from which nothing is taken.
        numbers = ops.minimum(ops.floor(self._uniform(ids) * count), ops.maximum(count - 1.0, 0.0))
        places = ops.take_along_axis(ops.cast(order, "int32"), ops.cast(numbers, "int32"), axis=1)
        return ops.take_along_axis(ids, places, axis=1)

    def _uniform(self, like):
        return keras.random.uniform(ops.shape(like), dtype="float32", seed=self.seed_generator)

    def compute_output_spec(self, inputs, training=None):
        first = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
        return keras.KerasTensor(first.shape, dtype="int32")

    def get_config(self):
        names = ("rate", "keep", "pool", "special", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class PreviousOutputs(Layer):
    """The last pass's output of the place before, in place of an embedding: TeaForN's next input.

    y_t = h_(t-1) at the places chosen, else e_t; place 0 always keeps its embedding.

    Shapes: [e, h] or [e, h, chosen]: e and h [B, T, D], chosen 0/1 [B, T]; returns [B, T, D].
    Masks: that of e.
    Source: arXiv:2010.03494.
    """

    def call(self, inputs):
        embeddings, outputs, *chosen = inputs
        outputs = ops.cast(outputs, embeddings.dtype)
        shifted = ops.concatenate([embeddings[:, :1], outputs[:, :-1]], axis=1)
        return ops.where(ops.cast(chosen[0], "bool")[:, :, None], shifted, embeddings) if chosen else shifted

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs[0].shape, dtype=self.compute_dtype)


@register
class HighestScores(Layer):
    """The k highest of V scores and their ids, the other half of `ExpectedEmbedding`; k = None: all, in order.

    Shapes: [B, T, V] -> scores [B, T, k], ids int [B, T, k] (all: [1, 1, V]).
    Masks: none.
    """

    def __init__(self, k=None, **kwargs):
        super().__init__(**kwargs)
        self.k = k

    def call(self, inputs):
        if self.k is None:
            return inputs, ops.arange(ops.shape(inputs)[-1], dtype="int32")[None, None]
        scores, ids = ops.top_k(inputs, self.k)
        return scores, ops.cast(ids, "int32")

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_spec(self, inputs):
        shape = (*inputs.shape[:-1], self.k or inputs.shape[-1])
        ids = keras.KerasTensor(shape if self.k else (1, 1, shape[-1]), dtype="int32")
        return keras.KerasTensor(shape, dtype=self.compute_dtype), ids

    def get_config(self):
        return {**super().get_config(), "k": self.k}


@register
class ExpectedEmbedding(Layer):
    """Mean of vectors, weighted by the softmax of scores: sum_j softmax(s)_j e_j.

    Shapes: scores [B, T, k], vectors [B or 1, T or 1, k, D] -> [B, T, D].
    Masks: that of the scores.
    """

    def call(self, inputs):
        scores, vectors = inputs
        weights = ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), vectors.dtype)
        if vectors.shape[0] == 1 and vectors.shape[1] == 1:  # one table for all places
            return ops.matmul(weights, vectors[0, 0])
        return ops.matmul(weights[:, :, None], vectors)[:, :, 0]

    def compute_output_spec(self, inputs):
        scores, vectors = inputs
        return keras.KerasTensor((*scores.shape[:-1], vectors.shape[-1]), dtype=self.compute_dtype)
