"""Self-attention to some of the positions, computed in blocks: memory and time are linear in length times window."""

import functools

from bert4x.backend import (
    attention_normalize,
    divisible_temporal_padding,
    keras,
    masked_logit,
    ops,
    runtime,
)
from bert4x.layers.attention import MultiHeadAttention
from bert4x.layers.base import register
from bert4x.layers.rules import Causal, Strided, Window


class _BlockSelfAttention(MultiHeadAttention):
    """Attention of x to itself with the weights of `MultiHeadAttention`, in blocks.

    `pattern` is the rule that it keeps to; its mask in `MultiHeadAttention` gives the same. A subclass says in how many
    residue classes it works (`_classes`), to a multiple of what number the length is padded (`_multiple`), and how the
    blocks attend (`_attend_within`).
    """

    fusible = False
    in_blocks = True

    def __init__(self, heads, head_size, *, causal=False, **kwargs):
        super().__init__(heads, head_size, **kwargs)
        if self.return_attention_scores:
            raise ValueError(
                f"{type(self).__name__} has no scores [B, H, T, T] to return; got return_attention_scores=True. "
                "Use MultiHeadAttention with the mask `pattern`."
            )
        self.causal = causal

    def build(self, input_shape):
        shape = input_shape[0] if isinstance(input_shape[0], (list, tuple)) else input_shape
        super().build([shape] * 3)

    def call(self, inputs, mask=None, p_bias=None, training=None):
        inputs = self._listed(inputs, p_bias)
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        attend = functools.partial(self._attend_all, mask=mask, p_bias=p_bias, training=training)
        o, *cache = runtime.rematerialized(self, attend, *inputs) if self.remat else attend(*inputs)
        return [o, tuple(cache)] if self.return_cache else o

    def _listed(self, inputs, p_bias):
        if p_bias not in (None, "rotary", "rotary_half"):
            raise ValueError(f"{type(self).__name__} takes p_bias None, 'rotary' or 'rotary_half'; got {p_bias!r}")
        inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(inputs) != 1 + (p_bias is not None):
            raise ValueError(
                f"{self.name} attends to its one input x, or [x, table] with p_bias; got {len(inputs)} inputs and "
                f"p_bias={p_bias!r}. For other keys or a mask of your own use MultiHeadAttention."
            )
        return inputs

    def _attend_all(self, x, *table, mask, p_bias, training):
        batch, length = ops.shape(x)[:2]
        x, *table = (divisible_temporal_padding(part, self._multiple) for part in (x, *table))
        padded = ops.shape(x)[1]
        if mask is None:
            real = ops.broadcast_to(ops.arange(padded) < length, (batch, padded))
        else:
            real = divisible_temporal_padding(ops.cast(mask, "bool"), self._multiple)
        q, *cache = self._projected(x, x, x, table[0] if table else None, p_bias, None, None)
        q, k, v = (self._split(part) for part in (q, *map(self._shared, cache)))
        o = self._attend_within(q * ops.cast(self._scale, q.dtype), k, v, self._split(real), training)
        o = self.out(self._merged(o, padded)[:, :length])
        o = o if mask is None else ops.where(ops.cast(mask, "bool")[:, :, None], o, 0)
        return o, *(part[:, :length] for part in cache if self.return_cache)

    def _split(self, x):
        """[B, N, H, K] -> [B r, H, N / r, K], and [B, N] -> [B r, N / r]: a row for each residue class modulo r."""
        padded, rate, rest = ops.shape(x)[1], self._classes, tuple(x.shape[2:])
        if rate > 1:
            x = ops.reshape(x, (-1, padded // rate, rate, *rest))
            x = ops.swapaxes(x, 1, 2)
            x = ops.reshape(x, (-1, padded // rate, *rest))
        return ops.swapaxes(x, 1, 2) if rest else x

    def _merged(self, o, padded):
        """What `_split` has split, with the heads side by side: [B, N, H K]."""
        rate, width = self._classes, self.heads * self.head_size
        o = ops.reshape(ops.swapaxes(o, 1, 2), (-1, rate, padded // rate, width))
        return ops.reshape(ops.swapaxes(o, 1, 2) if rate > 1 else o, (-1, padded, width))

    @property
    def pattern(self):
        """The rule of who sees whom, besides padding."""
        return self._pattern() & Causal() if self.causal else self._pattern()

    def _attend_within(self, q, k, v, real, training):
        """o [B r, H, L, head_size] of q (scaled) and k [B r, H, L, K], v, and real [B r, L]: which keys count."""
        length = ops.shape(q)[2]
        q, k, v, real = (_blocks(x, self._block or length, axis) for x, axis in ((q, 2), (k, 2), (v, 2), (real, 1)))
        axes, keys, values, allowed = zip(*self._parts(k, v, real), strict=True)
        scores = [ops.einsum(f"bhxik,{axis}->bhxij", q, part) for axis, part in zip(axes, keys, strict=True)]
        weights, total = self._weights(scores, allowed)
        weights = [self.dropout(part, training=training) for part in weights]
        o = sum(ops.einsum(f"bhxij,{axis}->bhxik", *pair) for axis, *pair in zip(axes, weights, values, strict=True))
        return ops.reshape(o / total, (-1, self.heads, length, self.head_size))

    def _weights(self, scores, allowed):
        """Weights of all parts of the scores, to be divided by the total that comes with them."""
        if self.normalization != "softmax" or scores[0].dtype == "float16":  # too narrow for sums not yet divided
            return self._normalized(scores, allowed), 1
        # Softmax, except that the sums of values are divided in the end, not the weights: parts need not be joined, and
        # the gradient needs no sum over products of weights and their gradients. Every real query is allowed itself.
        scores, dtype = [ops.cast(part, "float32") for part in scores], scores[0].dtype
        logits = [ops.where(*pair, masked_logit("float32")) for pair in zip(allowed, scores, strict=True)]
        top = functools.reduce(ops.maximum, [ops.max(part, axis=-1, keepdims=True) for part in logits])
        weights = [ops.exp(part - ops.stop_gradient(top)) for part in logits]
        total = sum(ops.sum(part, axis=-1, keepdims=True) for part in weights)
        return [ops.cast(part, dtype) for part in weights], ops.cast(total, dtype)

    def _normalized(self, scores, allowed):
        """Weights of all parts of the scores."""
        allowed = [ops.broadcast_to(part, ops.shape(x)) for part, x in zip(allowed, scores, strict=True)]
        joint = ops.concatenate(scores, axis=-1), ops.concatenate(allowed, axis=-1)
        weights, parts = attention_normalize(*joint, method=self.normalization), []
        for part in scores:
            size = ops.shape(part)[-1]
            parts.append(weights[..., :size])
            weights = weights[..., size:]
        return parts

    def _pattern(self):
        raise NotImplementedError(f"{type(self).__name__} must define _pattern")

    @property
    def _classes(self):
        return 1

    @property
    def _multiple(self):
        raise NotImplementedError(f"{type(self).__name__} must define _multiple")

    @property
    def _block(self):
        """Number of queries in a block; None: all of a class."""
        return None

    def _parts(self, k, v, real):
        """[(axes, keys, values, allowed)] for queries [B r, H, X, i, K] (bhxik) in X blocks of i.

        j counts the keys of a part, so that its axes are bhxjk where keys [B r, H, X, j, K] belong to a block of
        queries; allowed, bool, can be broadcast to the scores [B r, H, X, i, j].
        """
        raise NotImplementedError(f"{type(self).__name__} must define _parts")

    def _near_parts(self, k, v, real, reach):
        """The keys at most `reach` away, of a query's own block and of the one on each side, in parts for `_parts`."""
        places = ops.arange(self._block)
        parts = []
        for shift in (0, -1) if self.causal else (0, -1, 1):
            offsets = places[None, :] - places[:, None] + shift * self._block
            allowed = (offsets >= -reach) & (offsets <= (0 if self.causal else reach))
            keys, values, real_keys = (_shifted(x, shift, axis) for x, axis in ((k, 2), (v, 2), (real, 1)))
            parts.append(("bhxjk", keys, values, real_keys[:, None, :, None, :] & allowed))
        return parts

    def compute_output_spec(self, inputs, mask=None, p_bias=None, training=None):
        x = self._listed(inputs, p_bias)[0]
        shapes = [(self.out_dim,), *(self.cache_sizes if self.return_cache else ())]
        o, *cache = (keras.KerasTensor((*x.shape[:2], *shape), dtype=self.compute_dtype) for shape in shapes)
        return [o, tuple(cache)] if cache else o

    def get_config(self):
        return {**super().get_config(), "causal": self.causal}


@register
class AtrousSelfAttention(_BlockSelfAttention):
    """Attention of x to itself at distances that are multiples of r: (i - j) mod r = 0.

    The positions of one residue class modulo r attend to one another; H T ceil(T / r) scores.

    Args:
        rate: r, at least 1.
        causal: only j <= i.
        The others as in `MultiHeadAttention`, without return_attention_scores and fused.
    Call: x, or [x, table] with p_bias 'rotary' or 'rotary_half'.
    Shapes: x [B, T, D], table [B or 1, T, K] -> [B, T, out_dim].
    Masks: padded keys get no weight, padded queries give zeros; the mask is passed on.
    Raises: ValueError for a rate below 1, and for options and inputs that it does not have.
    Source: kexue.fm archives 6853.
    """

    def __init__(self, heads, head_size, rate, **kwargs):
        super().__init__(heads, head_size, **kwargs)
        self.rate = _integer("rate", rate, 1)

    def _pattern(self):
        return Strided(self.rate)

    @property
    def _classes(self):
        return self.rate

    @property
    def _multiple(self):
        return self.rate

    def _parts(self, k, v, real):
        allowed = real[:, None, :, None, :]
        if self.causal:
            places = ops.arange(ops.shape(k)[3])
            allowed = allowed & (places[None, :] <= places[:, None])
        return [("bhxjk", k, v, allowed)]

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class LocalSelfAttention(_BlockSelfAttention):
    """Attention of x to itself at the k nearest positions on each side, r apart: |i - j| <= k r, (i - j) mod r = 0.

    In each residue class a block of k queries attends to its own block and the two beside it; 3 k H T scores.

    Args:
        neighbors: k, at least 0.
        rate: r, at least 1.
        causal: only j <= i; 2 k H T scores.
        The others as in `MultiHeadAttention`, without return_attention_scores and fused.
    Call: x, or [x, table] with p_bias 'rotary' or 'rotary_half'.
    Shapes: x [B, T, D], table [B or 1, T, K] -> [B, T, out_dim].
    Masks: padded keys get no weight, padded queries give zeros; the mask is passed on.
    Raises: ValueError for neighbors below 0 or a rate below 1, and for options and inputs that it does not have.
    Source: kexue.fm archives 6853; arXiv:2004.05150 section 3.1.
    """

    def __init__(self, heads, head_size, neighbors, *, rate=1, **kwargs):
        super().__init__(heads, head_size, **kwargs)
        self.neighbors, self.rate = _integer("neighbors", neighbors, 0), _integer("rate", rate, 1)

    def _pattern(self):
        near = Window(self.neighbors * self.rate + 1)
        return near & Strided(self.rate) if self.rate > 1 else near

    @property
    def _classes(self):
        return self.rate

    @property
    def _block(self):
        return max(self.neighbors, 1)

    @property
    def _multiple(self):
        return self.rate * self._block

    def _parts(self, k, v, real):
        return self._near_parts(k, v, real, self.neighbors)

    def get_config(self):
        return {**super().get_config(), "neighbors": self.neighbors, "rate": self.rate}


@register
class SparseSelfAttention(_BlockSelfAttention):
    """Attention of x to itself, dense near by and strided far away: |i - j| < r or (i - j) mod r = 0.

    Two kinds of scores for X blocks of r queries, near [X, r, 3 r] and far [X, r, X], under one softmax;
    H T (ceil(T / r) + 3 r) scores, O(T sqrt T) with r = sqrt T.

    Args:
        rate: r, at least 2.
        causal: only j <= i.
        The others as in `MultiHeadAttention`, without return_attention_scores and fused.
    Call: x, or [x, table] with p_bias 'rotary' or 'rotary_half'.
    Shapes: x [B, T, D], table [B or 1, T, K] -> [B, T, out_dim].
    Masks: padded keys get no weight, padded queries give zeros; the mask is passed on.
    Raises: ValueError for a rate below 2, and for options and inputs that it does not have.
    Source: kexue.fm archives 6853; arXiv:1904.10509 section 4.3 (strided attention).
    """

    def __init__(self, heads, head_size, rate, **kwargs):
        super().__init__(heads, head_size, **kwargs)
        self.rate = _integer("rate", rate, 2)

    def _pattern(self):
        return Strided(self.rate) | Window(self.rate)

    @property
    def _block(self):
        return self.rate

    @property
    def _multiple(self):
        return self.rate

    def _parts(self, k, v, real):
        blocks = ops.arange(ops.shape(k)[2])
        others = blocks[None, :] < blocks[:, None] if self.causal else blocks[None, :] != blocks[:, None]
        allowed = others[:, None, :] & ops.swapaxes(real, 1, 2)[:, None, None]
        far = "bhjik", k, v, allowed  # the keys at the query's place i in the other blocks j
        return [*self._near_parts(k, v, real, self.rate - 1), far]

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def _integer(name, value, least):
    if isinstance(value, bool) or value != int(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    return int(value)


def _shifted(x, shift, axis):
    """The blocks before (shift -1), at (0) or after (1) each along an axis; zeros where there is none."""
    if shift == 0:
        return x
    none = [(0, 0)] * len(x.shape)
    none[axis] = (1, 0) if shift < 0 else (0, 1)
    return ops.pad(x, none)[(slice(None),) * axis + (slice(None, -1) if shift < 0 else slice(1, None),)]


def _blocks(x, size, axis):
    """Cut an axis into blocks: [..., L, ...] -> [..., L / size, size, ...]."""
    shape = list(ops.shape(x))
    return ops.reshape(x, (*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :]))
