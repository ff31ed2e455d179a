"""Synthesizer attention: scores computed from single tokens, or learned as tables, in place of query-key products."""

import functools
import math

from bert4x.backend import keras, ops
from bert4x.layers.attention import MultiHeadAttention
from bert4x.layers.base import register

_MODES = ("dense", "factorized_dense", "random", "fixed_random", "factorized_random", "dot")


@register
class SynthesizerAttention(MultiHeadAttention):
    """Self-attention with synthetic scores S [H, T, S], for at most L tokens; the rest as `MultiHeadAttention`.

        dense              S = relu(x W1 + b1) W2 + b2
        factorized_dense   S[i, p N + q] = A[i, p] C[i, q],  A = x Wa + ba [T, M],  C = x Wb + bb [T, N],  M N >= L
        random             S = R, a weight [L, L]; fixed_random: one that is not trained
        factorized_random  S = R1 R2', two weights [L, rank]
        dot                S = q k' / sqrt(K): ordinary attention, the only mode that has queries and keys
        a list of these    their mean, weighted by a softmax of one number per mode, which start equal

    Args (besides those of `MultiHeadAttention`):
        mode: one of these names, or a list of different ones.
        max_length: tokens L. A query or key beyond is an error.
        hidden_units: width of W1 in `dense`; that of x if absent.
        factors: (M, N) of `factorized_dense`; M is the largest divisor of L up to sqrt(L) if absent.
        rank: of `factorized_random`.
        synthetic_initializer: of the kernels and of R, R1 and R2, for each head apart.
    Call: as `MultiHeadAttention`; q, k, v have one length, and the scores are made of q. rotary and typical_relative
        need the mode dot, and change no other. With `start` and `padding` the rows and columns of R are those of
        positions (slot minus padding), whatever slots the tokens stand in.
    Shapes:  as `MultiHeadAttention`. Without `dot` the keys in a cache are a placeholder, [B, S, 1, 1].
    Weights: those of the modes in the order above, mixture (a number per mode); query, key (with dot), value, out.
    Masks: as `MultiHeadAttention`. Synthetic scores are not scaled. There is no fused form.
    Raises: ValueError for an unknown or repeated mode, M N < L, more than L tokens (in a graph of unknown length: the
        backend's error of shapes that differ; over a cache, which may have more slots: NaN), or a complete cache.
    Source: arXiv:2005.00743 section 3.
    """

    fusible = False
    counts_positions = True

    def __init__(
        self,
        heads,
        head_size,
        *,
        mode="dense",
        max_length=None,
        hidden_units=None,
        factors=None,
        rank=8,
        synthetic_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(heads, head_size, **kwargs)
        self.mode, self.modes = mode, [mode] if isinstance(mode, str) else list(mode)
        if not self.modes or len(set(self.modes)) < len(self.modes) or not set(self.modes) <= set(_MODES):
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, or a list of different ones; got {mode!r}")
        if not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"SynthesizerAttention needs max_length, a number of tokens; got {max_length!r}")
        self.max_length, self.hidden_units, self.rank = max_length, hidden_units, rank
        largest = next(m for m in range(math.isqrt(max_length), 0, -1) if max_length % m == 0)
        self.factors = list(factors or (largest, max_length // largest))
        if math.prod(self.factors) < max_length:
            raise ValueError(f"the product of the factors must be at least max_length {max_length}; got {self.factors}")
        self.synthetic_initializer = keras.initializers.get(synthetic_initializer)

    @property
    def cache_sizes(self):
        return super().cache_sizes if "dot" in self.modes else ((1, 1), super().cache_sizes[1])

    @property
    def own_weights(self):
        """Names of the variables that are in none of the projections."""
        mixture = ["mixture"] if len(self.modes) > 1 else []
        return [name for mode in self._synthetic_modes for name in self._shapes(mode, 1)] + mixture

    @property
    def _synthetic_modes(self):
        return [mode for mode in _MODES if mode in self.modes and mode != "dot"]

    def _shapes(self, mode, width):
        """The shapes of a mode's weights, {name: shape}; width is that of x."""
        heads, length, (rows, columns) = self.heads, self.max_length, self.factors
        inner = self.hidden_units or width
        shapes = {
            "dense": {
                "inner_kernel": (heads, width, inner),
                "inner_bias": (heads, inner),
                "outer_kernel": (heads, inner, length),
                "outer_bias": (heads, length),
            },
            "factorized_dense": {
                "first_kernel": (heads, width, rows),
                "first_bias": (heads, rows),
                "second_kernel": (heads, width, columns),
                "second_bias": (heads, columns),
            },
            "random": {"random_table": (heads, length, length)},
            "fixed_random": {"fixed_table": (heads, length, length)},
            "factorized_random": dict.fromkeys(("random_rows", "random_columns"), (heads, length, self.rank)),
        }[mode]
        return {name: shape for name, shape in shapes.items() if self.use_bias or not name.endswith("bias")}

    def build(self, input_shape):
        super().build(input_shape)
        initializer = functools.partial(_by_head, self.synthetic_initializer)
        for mode in self._synthetic_modes:
            for name, shape in self._shapes(mode, input_shape[0][-1]).items():
                first = "zeros" if name.endswith("bias") else initializer
                trained = mode != "fixed_random"
                setattr(self, name, self.add_weight(name=name, shape=shape, initializer=first, trainable=trained))
        if len(self.modes) > 1:
            self.mixture = self.add_weight(
                name="mixture", shape=(len(self.modes),), initializer="zeros", autocast=False
            )

    def _build_products(self, q_shape, k_shape, **options):
        if "dot" in self.modes:
            super()._build_products(q_shape, k_shape, **options)

    def _check(self, inputs, a_bias, p_bias, cache, start):
        super()._check(inputs, a_bias, p_bias, cache, start)
        if cache is not None and start is None:
            raise ValueError(f"{self.name} is self-attention; got a complete cache, which is for cross-attention")
        if p_bias not in (None, "t5_relative") and "dot" not in self.modes:
            raise ValueError(
                f"p_bias={p_bias!r} acts on queries and keys, which mode={self.mode!r} has not. Use a list with 'dot'."
            )
        queries, keys = inputs[0].shape[1], inputs[1].shape[1]
        if cache is None and max(queries or 0, keys or 0) > self.max_length:
            raise ValueError(
                f"{self.name} has scores for max_length={self.max_length} tokens; got {queries} queries and {keys} keys"
            )
        if None not in (queries, keys) and queries != keys:
            raise ValueError(f"{self.name} is self-attention; got {queries} queries and {keys} keys")

    def _projected(self, q, k, v, position, p_bias, cache, start):
        if "dot" in self.modes:
            return super()._projected(q, k, v, position, p_bias, cache, start)
        v = self._heads(self.value(v), self.key_value_heads)
        return None, *self._behind(cache, start, ops.zeros_like(v[:, :, :1, :1]), v)

    def _scores(self, x, q, k, relative, start, padding):
        slots, count = ops.shape(k)[1], ops.shape(x)[1]
        columns, rows = slots, slice(count)
        if start is not None:  # slots are no positions: all columns are made, then those of the slots taken
            padding = ops.zeros_like(x[:, 0, 0], dtype="int32") if padding is None else padding
            columns, rows = None, ops.maximum(start + ops.arange(count) - padding[:, None], 0)
        shares = dict(zip(self.modes, self._shares(), strict=True))
        parts = [shares[mode] * getattr(self, f"_{mode}")(x, rows, columns) for mode in self._synthetic_modes]
        scores = sum(parts[1:], parts[0]) if parts else None
        if parts and start is not None:
            scores = self._in_slots(scores, slots, padding)
        if "dot" in self.modes:
            product = super()._scores(x, q, k, relative, start, padding) * shares["dot"]
            scores = product if scores is None else scores + product
        return ops.broadcast_to(scores, (ops.shape(x)[0], *ops.shape(scores)[1:]))

    def _shares(self):
        """The weight of each mode, in the order given."""
        if len(self.modes) == 1:
            return [1.0]
        shares = ops.cast(ops.softmax(ops.convert_to_tensor(self.mixture)), self.compute_dtype)
        return [shares[i] for i in range(len(self.modes))]

    def _dense(self, x, rows, columns):
        hidden = ops.relu(self._linear(x, "inner"))
        return self._linear(hidden, "outer", columns)

    def _factorized_dense(self, x, rows, columns):
        first, second = self._linear(x, "first"), self._linear(x, "second")
        scores = ops.expand_dims(first, -1) * ops.expand_dims(second, -2)
        shape = (*ops.shape(first)[:-1], math.prod(self.factors))
        return ops.reshape(scores, shape)[..., : self.max_length][..., :columns]

    def _random(self, x, rows, columns):
        return _taken(self.random_table[:, :, :columns], rows)

    def _fixed_random(self, x, rows, columns):
        return _taken(self.fixed_table[:, :, :columns], rows)

    def _factorized_random(self, x, rows, columns):
        return ops.einsum("bhtr,hsr->bhts", _taken(self.random_rows, rows), self.random_columns[:, :columns])

    def _linear(self, x, name, columns=None):
        """x [B, T, D] or [B, H, T, D] times the kernel of each head, plus its bias; the first columns of that."""
        kernel = getattr(self, f"{name}_kernel")[:, :, :columns]
        y = ops.einsum("btd,hde->bhte" if len(x.shape) == 3 else "bhtd,hde->bhte", x, kernel)
        return y + getattr(self, f"{name}_bias")[:, None, :columns] if self.use_bias else y

    def _in_slots(self, scores, slots, padding):
        """The columns [B, H, T, L] of positions -> those of slots [B, H, T, S]; of padding: any."""
        places = (ops.arange(slots) - padding[:, None])[:, None, None]
        known = ops.broadcast_to(ops.clip(places, 0, self.max_length - 1), (*ops.shape(scores)[:-1], slots))
        # A cache may be longer than what is written into it. Slots without a position are masked, else they show.
        return ops.where(places < self.max_length, ops.take_along_axis(scores, known, axis=-1), float("nan"))

    def get_config(self):
        return {
            **super().get_config(),
            "mode": self.mode,
            "max_length": self.max_length,
            "hidden_units": self.hidden_units,
            "factors": self.factors,
            "rank": self.rank,
            "synthetic_initializer": keras.initializers.serialize(self.synthetic_initializer),
        }


def _taken(table, rows):
    """Rows, a slice or int [B, T], of [H, L, N] as [1 or B, H, T, N]."""
    if isinstance(rows, slice):
        return table[:, rows][None]
    return ops.transpose(ops.take(table, rows, axis=1), (1, 0, 2, 3))


def _by_head(initializer, shape, dtype=None):
    """Values of a variable [H, ...], drawn for each head as if it stood alone."""
    heads, config = [], initializer.get_config()
    for head in range(shape[0]):
        other = {"seed": config["seed"] + head} if isinstance(config.get("seed"), int) else {}
        heads.append(initializer.__class__.from_config({**config, **other})(shape[1:], dtype=dtype))
    return ops.stack(heads)
