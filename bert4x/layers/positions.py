"""Positions: learned, sinusoidal and rotary tables, relative vectors, T5 buckets."""

import math

import numpy as np

from bert4x.backend import keras, ops, sinusoidal_embeddings
from bert4x.layers.base import Layer, register

_MERGE_MODES = ("add", "mul", "zero", "concat")


class _AbsolutePositions(Layer):
    """x [B, T, D], or [x, position ids [B, T]], merged with one vector per position.

    merge_mode: 'add' x + E, 'mul' x (1 + E), 'zero' E alone, 'concat' [x, E].
    custom_position_ids: ids must be given; otherwise they may be (the graph of one decoding step does), and are
        0 .. T - 1 by default.
    """

    def __init__(self, *, merge_mode="add", custom_position_ids=False, **kwargs):
        super().__init__(**kwargs)
        if merge_mode not in _MERGE_MODES:
            raise ValueError(f"merge_mode must be one of {', '.join(_MERGE_MODES)}; got {merge_mode!r}")
        self.merge_mode, self.custom_position_ids = merge_mode, custom_position_ids

    def call(self, inputs):
        x, ids = self._split(inputs)
        vectors = self.vectors(x, ids)
        if self.merge_mode == "zero":
            return vectors
        vectors = ops.cast(vectors, x.dtype)
        if self.merge_mode == "add":
            return x + vectors
        if self.merge_mode == "mul":
            return x * (1 + vectors)
        shape = (*ops.shape(x)[:-1], self.output_dim)
        return ops.concatenate([x, ops.broadcast_to(vectors, shape)], axis=-1)

    def _split(self, inputs):
        """x and the position ids, or None."""
        if isinstance(inputs, (list, tuple)):
            return inputs
        if self.custom_position_ids:
            raise ValueError(f"{self.name} has custom_position_ids: call it with [x, position ids]; got x alone")
        return inputs, None

    def compute_output_shape(self, input_shape):
        given = isinstance(input_shape[0], (list, tuple))
        shape = input_shape[0] if given else input_shape
        if self.merge_mode == "zero":
            return (shape[0] if given else 1, shape[1], self.output_dim)
        return (*shape[:-1], shape[-1] + self.output_dim) if self.merge_mode == "concat" else shape

    def compute_output_spec(self, inputs):
        # A table sliced by a length that is still None must not run on placeholder shapes.
        x, ids = self._split(inputs)
        if ids is None:
            self.check_length(x.shape[1])
        shapes = x.shape if ids is None else [x.shape, ids.shape]
        return keras.KerasTensor(self.compute_output_shape(shapes), dtype=self.vector_dtype())

    def check_length(self, length):
        """Raise if a static length exceeds what the table covers."""

    def vector_dtype(self):
        """dtype of the output."""
        return self.compute_dtype

    def get_config(self):
        return {
            **super().get_config(),
            "merge_mode": self.merge_mode,
            "custom_position_ids": self.custom_position_ids,
        }


@register
class PositionEmbedding(_AbsolutePositions):
    """Learned absolute positions, optionally stretched to N^2 positions.

    Hierarchical, with table p of N rows: u_i = (p_i - alpha p_0) / (1 - alpha), position iN + j is
    alpha u_i + (1 - alpha) u_j; the first N positions equal the table.

    Args:
        input_dim: rows N.
        output_dim: width D.
        merge_mode: add, mul, zero or concat.
        hierarchical: None, True (alpha 0.4) or alpha in (0, 1), not 0.5.
        custom_position_ids: the inputs are [x, position ids].
    Shapes: [B, T, D] (and int [B, T]) -> [B, T, D] ('concat': [B, T, 2D]; 'zero': the vectors alone).
    Raises: ValueError for a static length above N (hierarchical: N^2).
    Source: arXiv:1810.04805; kexue.fm archives 7947 (hierarchical).
    """

    def __init__(
        self, input_dim, output_dim, *, hierarchical=None, embeddings_initializer="zeros", **kwargs
    ):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.hierarchical = 0.4 if hierarchical is True else hierarchical or None
        if self.hierarchical is not None and not (0 < self.hierarchical < 1 and self.hierarchical != 0.5):
            raise ValueError(f"hierarchical must be in (0, 1) and not 0.5; got {hierarchical}. Use True for 0.4.")
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer,
        )

    def vectors(self, x, ids):
        """The vectors of the given positions, or of 0 .. T - 1."""
        table = ops.convert_to_tensor(self.embeddings)
        if ids is None and self.hierarchical is None:
            self.check_length(x.shape[1])
            return table[: ops.shape(x)[1]][None]
        if ids is None:
            self.check_length(x.shape[1])
            ids = ops.arange(ops.shape(x)[1])[None]
        ids = ops.cast(ids, "int32")
        if self.hierarchical is None:
            return ops.take(table, ids, axis=0)
        alpha = self.hierarchical
        unit = (table - alpha * table[:1]) / (1 - alpha)
        high = ops.take(unit, ids // self.input_dim, axis=0)
        return alpha * high + (1 - alpha) * ops.take(unit, ids % self.input_dim, axis=0)

    def check_length(self, length):
        limit = self.input_dim if self.hierarchical is None else self.input_dim**2
        if length is not None and length > limit:
            raise ValueError(
                f"{self.name} covers {limit} positions; got a sequence of {length} tokens. "
                "Truncate the input, use hierarchical_position=True, or a family with relative positions."
            )

    def get_config(self):
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "hierarchical": self.hierarchical,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


@register
class SinusoidalPositionEmbedding(_AbsolutePositions):
    """Fixed positions of interleaved sines and cosines; with merge_mode 'zero', the table for rotary attention.

    Args:
        output_dim: width, even.
        base: the longest wave is 2 pi base tokens.
        scales: output_dim / 2 numbers with which the rates of the waves are multiplied, or None.
    Shapes: as `PositionEmbedding`. With merge_mode 'zero' the output is float32 under every policy: angles of far
        positions need it.
    Source: arXiv:1706.03762 section 3.5.
    """

    def __init__(self, output_dim, *, base=10000, scales=None, **kwargs):
        super().__init__(**kwargs)
        if output_dim % 2:
            raise ValueError(f"sines and cosines come in pairs: output_dim must be even; got {output_dim}")
        self.output_dim, self.base, self.scales = output_dim, base, scales

    def vectors(self, x, ids):
        """The vectors of the given positions, or of 0 .. T - 1; float32."""
        ids = ops.arange(ops.shape(x)[1])[None] if ids is None else ids
        return sinusoidal_embeddings(ids, self.output_dim, self.base, scales=self.scales)

    def vector_dtype(self):
        return "float32" if self.merge_mode == "zero" else self.compute_dtype

    def get_config(self):
        return {**super().get_config(), "output_dim": self.output_dim, "base": self.base, "scales": self.scales}


@register
class SlotPositions(Layer):
    """Positions of T tokens in the slots from `start` of rows that begin at `padding`: max(start + t - padding, 0).

    Shapes: [ids [B, T], start [], padding [B]] -> int32 [B, T].
    """

    def call(self, inputs):
        ids, start, padding = inputs
        slots = start + ops.arange(ops.shape(ids)[1])
        return ops.maximum(slots[None, :] - padding[:, None], 0)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs[0].shape, dtype="int32")


def sinusoidal_table(rows, width):
    """The table of `sinusoidal_embeddings` for positions 0 .. rows - 1, as float32 numpy [rows, width]."""
    rate = np.power(10000.0, -2.0 * np.arange(width // 2) / width)
    angle = np.arange(rows)[:, None] * rate
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(rows, width).astype("float32")


@register
class Sinusoidal(keras.initializers.Initializer):
    """Initialiser that fills a table [rows, width] with `sinusoidal_table`."""

    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor(sinusoidal_table(*shape), dtype=dtype)


class _RelativePositions(Layer):
    """Inputs [q, k], of which only the lengths matter; a table indexed by key position - query position.

    start: position of the first query, where the keys begin at 0 (a cache); 0 by default.
    """

    def __init__(self, input_dim, output_dim, *, embeddings_initializer="zeros", **kwargs):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer,
        )

    def call(self, inputs, start=None):
        q, k = inputs
        queries = ops.arange(ops.shape(q)[1])
        queries = queries if start is None else queries + start
        relative = ops.arange(ops.shape(k)[1])[None, :] - queries[:, None]
        return ops.take(self.embeddings, self.index(relative), axis=0)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0][1], input_shape[1][1], self.output_dim)

    def compute_output_spec(self, inputs, start=None):
        return keras.KerasTensor(self.compute_output_shape([t.shape for t in inputs]), dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


@register
class RelativePositionEmbedding(_RelativePositions):
    """Vectors of clipped offsets: R[i, j] = table[clip(j - i, -M, M) + M], table of 2M + 1 rows.

    Args:
        input_dim: rows, 2M + 1.
        output_dim: width, the key size of the attention.
    Shapes: [[B, T, D], [B, S, D]] -> [T, S, K].
    Source: arXiv:1803.02155; arXiv:1909.00204 (NEZHA: sinusoidal table, not trained).
    """

    def index(self, relative):
        """Table rows of key position - query position."""
        limit = (self.input_dim - 1) // 2
        return ops.clip(relative, -limit, limit) + limit


@register
class RelativePositionEmbeddingT5(_RelativePositions):
    """One number per head and bucket of offsets: small offsets exactly, larger ones in logarithmic buckets.

    Args:
        input_dim: number of buckets.
        output_dim: number of heads.
        max_distance: offset in tokens from which all fall into the last bucket.
        bidirectional: half of the buckets for keys after the query; otherwise those count as offset 0.
    Shapes: [[B, T, D], [B, S, D]] -> [T, S, H].
    Source: arXiv:1910.10683 section 2.1.
    """

    def __init__(self, input_dim, output_dim, *, max_distance=128, bidirectional=True, **kwargs):
        super().__init__(input_dim, output_dim, **kwargs)
        self.max_distance, self.bidirectional = max_distance, bidirectional

    def index(self, relative):
        """Bucket numbers of key position - query position."""
        buckets, first = self.input_dim, 0
        if self.bidirectional:
            buckets //= 2
            first = ops.cast(relative > 0, "int32") * buckets
            distance = ops.abs(relative)
        else:
            distance = ops.maximum(-relative, 0)
        exact = buckets // 2
        ratio = ops.cast(ops.maximum(distance, 1), "float32") / exact
        step = ops.log(ratio) / math.log(self.max_distance / exact) * (buckets - exact)
        far = ops.minimum(exact + ops.cast(ops.floor(step), "int32"), buckets - 1)
        return first + ops.where(distance < exact, distance, far)

    def get_config(self):
        return {
            **super().get_config(),
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
        }
