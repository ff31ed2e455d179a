"""Multi-head attention: separate sizes, biases, positions inside, residual scores, cache."""

import functools

from bert4x.backend import (
    align,
    apply_rotary_position_embeddings,
    attention_normalize,
    combine_masks,
    is_boolean,
    keras,
    masked_logit,
    ops,
    runtime,
)
from bert4x.layers.base import Layer, register

_POSITIONS = (None, "rotary", "rotary_half", "typical_relative", "t5_relative")
_SETTINGS = ("heads", "head_size", "out_dim", "key_size", "key_value_heads", "use_bias", "normalization")
_SETTINGS += ("attention_scale", "attention_dropout", "return_attention_scores", "return_cache", "fused", "remat")


@register
class MultiHeadAttention(Layer):
    """Attention over H heads, with optional bias, position terms and cache.

    Per head: S = (q k' + position term) / sqrt(K) + biases;  O = normalize(S) v; one Dense mixes the joined heads.

    Args:
        heads: number of heads H.
        head_size: width of one value head.
        out_dim: output width; H * head_size if absent.
        key_size: width K of one query and key head; head_size if absent (arXiv:2002.07028).
        key_value_heads: number G of key and value heads, each for H / G query heads; H if absent (arXiv:2305.13245).
        use_bias: biases of the four projections; 'qkv': of the first three (Qwen2).
        normalization: softmax, softmax_plus or squared_relu (see `attention_normalize`).
        attention_scale: divide by sqrt(K).
        attention_dropout: rate in [0, 1) on the weights, used in training only.
        return_attention_scores: also return S (after scaling and float biases, before boolean masks).
        return_cache: return (o, (k, v)) in place of o; the builders do, so that one layer serves the full graph and
            the graph of one decoding step.
        fused: use `keras.ops.dot_product_attention` where that is possible; None decides (torch, or a GPU).
        remat: recompute the attention in the backward pass.
    Call: [q, k, v], then `a_bias` tensors (True: one, or a number of them), then the tensor that `p_bias` names:
        rotary: table [B or 1, T, K] of sines and cosines, for the pairs (0, 1), (2, 3) ... of q and k
        rotary_half: the same table, for the pairs (0, K/2), (1, K/2 + 1) ... (LLaMA)
        typical_relative: vectors [T, S, K], for keys and values
        t5_relative: numbers [T, S, H]
        cache, start: keys and values [B, S, G, .] of all slots, and the slot where this call's T tokens begin. A cache
            without `start` is complete: q attends to it, and the inputs k and v are not used (cross-attention).
        padding: with `start`, the slot [B] where each row begins; for layers that count positions.
    Shapes:  (B batch, T queries, S keys, D width, H heads, K key width)
        q float [B, T, D], k and v float [B, S, D]
        a_bias: bool (True = allowed, ANDed) or float (added): [T, S], [B, T, S] or [B, H, T, S], 1 broadcasts
        returns o [B, T, out_dim]; S [B, H, T, S]; k [B, S, G, K], v [B, S, G, head_size]
    Masks: padded keys (mask of v) get no weight; a query that may see nothing gets zeros; the mask of q is passed on.
    Raises: ValueError if `start` is given without `cache`, or if the number of inputs does not fit the flags.
    Subclasses change where the scores come from, or mix them: `_projected`, `_scores`, `_weights`.
    Source: arXiv:1706.03762 eq. 1; 2104.09864 (rotary); 1803.02155 (relative); 1910.10683 (T5); 2012.11747 (residual).
    """

    fusible = True  # the scores are those of the fused kernels
    counts_positions = False  # it has numbers for each position, up to `max_length`
    in_blocks = False  # it attends to one input in a pattern of its own, and takes no masks but padding
    own_weights = ()  # names of the variables that are in none of the four projections

    def __init__(
        self,
        heads,
        head_size,
        *,
        out_dim=None,
        key_size=None,
        key_value_heads=None,
        use_bias=True,
        normalization="softmax",
        attention_scale=True,
        attention_dropout=None,
        return_attention_scores=False,
        kernel_initializer="glorot_uniform",
        return_cache=False,
        fused=None,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.heads, self.head_size = heads, head_size
        self.out_dim, self.key_size = out_dim or heads * head_size, key_size or head_size
        self.key_value_heads = key_value_heads or heads
        if heads % self.key_value_heads:
            raise ValueError(f"heads must be a multiple of key_value_heads; got {heads} and {self.key_value_heads}")
        if fused and not self.fusible:
            raise ValueError(f"{type(self).__name__} has no fused form; got fused={fused!r}. Use fused=None.")
        self.use_bias, self.normalization, self.attention_scale = use_bias, normalization, attention_scale
        self.attention_dropout = attention_dropout or 0.0
        self.return_attention_scores, self.return_cache = return_attention_scores, return_cache
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.fused, self.remat = fused, remat
        self.dropout = keras.layers.Dropout(self.attention_dropout, dtype=self.dtype_policy)

    def build(self, input_shape):
        options = {"use_bias": bool(self.use_bias), "kernel_initializer": self.kernel_initializer}
        q_shape, k_shape, v_shape = input_shape[:3]
        self._build_products(q_shape, k_shape, **options)
        self.add_dense("value", self.key_value_heads * self.head_size, v_shape, **options)
        options["use_bias"] = self.use_bias is True
        self.add_dense("out", self.out_dim, (*q_shape[:-1], self.heads * self.head_size), **options)

    def _build_products(self, q_shape, k_shape, **options):
        self.add_dense("query", self.heads * self.key_size, q_shape, **options)
        self.add_dense("key", self.key_value_heads * self.key_size, k_shape, **options)

    @property
    def cache_sizes(self):
        """(heads, width) of the keys and of the values in a cache."""
        return (self.key_value_heads, self.key_size), (self.key_value_heads, self.head_size)

    @property
    def score_heads(self):
        """Number of heads of the scores, and of the biases that are added to them."""
        return self.heads

    def call(self, inputs, mask=None, a_bias=None, p_bias=None, cache=None, start=None, padding=None, training=None):
        self._check(inputs, a_bias, p_bias, cache, start)
        # In a cache the slots of earlier calls count too; the caller's bias says which of them are padding.
        key_mask = mask[2] if isinstance(mask, (list, tuple)) and cache is None else None
        given = {"cache": cache, "start": start, "padding": padding}
        attend = functools.partial(self._attend, p_bias=p_bias, **given, training=training)
        masks = [] if key_mask is None else [align(key_mask, [0, -1], 4)]
        tensors = [*inputs[:3], *masks, *inputs[3:]]
        if self.remat and cache is None:
            # Recomputation differentiates what it is given; masks go by closure.
            floats = [i for i, tensor in enumerate(tensors) if not is_boolean(tensor)]
            attend = functools.partial(_with_floats, attend, tensors, floats)
            o, k, v, *scores = runtime.rematerialized(self, attend, *(tensors[i] for i in floats))
        else:
            o, k, v, *scores = attend(*tensors)
        outputs = [o, (k, v)] if self.return_cache else [o]
        outputs += scores if self.return_attention_scores else []
        return outputs if len(outputs) > 1 else o

    def _check(self, inputs, a_bias, p_bias, cache, start):
        if p_bias not in _POSITIONS:
            raise ValueError(f"p_bias must be one of {_POSITIONS}; got {p_bias!r}")
        if start is not None and cache is None:
            raise ValueError("`start` tells where new tokens begin in a cache; got start without cache")
        if cache is not None and start is None and p_bias is not None:
            raise ValueError(f"a complete cache (no `start`) holds no positions of its keys; got p_bias={p_bias!r}")
        expected = 3 + int(a_bias or 0) + (p_bias is not None)
        if len(inputs) != expected:
            raise ValueError(
                f"{self.name} expects {expected} inputs with a_bias={a_bias} and p_bias={p_bias!r}; got {len(inputs)}"
            )

    def _attend(self, x, k, v, *extras, p_bias, cache, start, padding, training):
        """o, the keys and values that the queries could see, and S unless a fused kernel computed all at once.

        extras: boolean and float biases, then the position term if `p_bias` names one.
        """
        biases, position = (extras[:-1], extras[-1]) if p_bias else (extras, None)
        q, k, v = self._projected(x, k, v, position, p_bias, cache, start)
        if p_bias == "t5_relative":
            biases = [*biases, ops.transpose(position, (2, 0, 1))[None] * self._scale]
        values = self._shared(v)
        allowed, added = self._split_biases(biases)
        if self._use_fused(p_bias, training):
            o, scores = self._fused(q, self._shared(k), values, allowed, added), []
        else:
            relative = position if p_bias == "typical_relative" else None
            scores = [self._scores(x, q, k, relative, start, padding)]
            scores = scores if added is None else [scores[0] + added]
            o = self._joined(self._weights(scores[0], allowed, training), values, relative)
        o = ops.reshape(o, (*ops.shape(o)[:2], self.heads * self.head_size))
        return self.out(o), k, v, *scores

    def _projected(self, q, k, v, position, p_bias, cache, start):
        """Queries [B, T, H, K], and the keys and values [B, S, G, .] that they may see."""
        q = self._heads(self.query(q), self.heads)
        if cache is not None and start is None:
            return q, *cache
        k = self._heads(self.key(k), self.key_value_heads)
        v = self._heads(self.value(v), self.key_value_heads)
        if p_bias in ("rotary", "rotary_half"):
            q, k = apply_rotary_position_embeddings(position, q, k, halves=p_bias == "rotary_half")
        return q, *self._behind(cache, start, k, v)

    @staticmethod
    def _behind(cache, start, *new):
        """New keys and values in their slots of the cache, if there is one."""
        if start is None:
            return new
        return [ops.slice_update(old, (0, start, 0, 0), one) for old, one in zip(cache, new, strict=True)]

    @staticmethod
    def _heads(x, heads):
        return ops.reshape(x, (*ops.shape(x)[:2], heads, x.shape[-1] // heads))

    def _shared(self, x):
        """[B, S, G, K] -> [B, S, H, K]: each key and value head serves a group of query heads."""
        groups = self.heads // self.key_value_heads
        return x if groups == 1 else ops.repeat(x, groups, axis=2)

    def _split_biases(self, biases):
        """The AND of the boolean biases, and the sum of the float biases, as [B, H, T, S]; None if there is none."""
        allowed = added = None
        for bias in biases:
            bias = align(bias, [0, *range(1 - len(bias.shape), 0)] if len(bias.shape) > 2 else [-2, -1], 4)
            if is_boolean(bias):
                allowed = combine_masks(allowed, bias)
            else:
                bias = ops.cast(bias, self.compute_dtype)
                added = bias if added is None else added + bias
        return allowed, added

    @property
    def _scale(self):
        return self.key_size**-0.5 if self.attention_scale else 1.0

    def _scores(self, x, q, k, relative, start, padding):
        """Scores [B, H, T, S] before the float biases; x are the states [B, T, D] of which the queries were made."""
        q = q * ops.cast(self._scale, q.dtype)  # scaling q is cheaper than scaling [B, H, T, S], and safer in float16
        scores = ops.einsum("bthk,bshk->bhts", q, self._shared(k))
        if relative is not None:
            scores = scores + ops.einsum("bthk,tsk->bhts", q, ops.cast(relative, q.dtype))
        return scores

    def _weights(self, scores, allowed, training):
        """Weights of the values, [B, H, T, S]."""
        weights = attention_normalize(scores, allowed, method=self.normalization)
        return self.dropout(weights, training=training)

    def _joined(self, weights, v, relative):
        o = ops.einsum("bhts,bshk->bthk", weights, v)
        if relative is not None:
            o = o + ops.einsum("bhts,tsk->bthk", weights, ops.cast(relative, v.dtype))
        return o

    def _use_fused(self, p_bias, training):
        possible = (
            self.fusible
            and self.normalization == "softmax"
            and p_bias != "typical_relative"
            and not self.return_attention_scores
            and not (self.attention_dropout and training)
        )
        if self.fused and not possible:
            raise ValueError(
                "fused attention needs softmax, no relative vectors on values, no returned scores and no attention "
                f"dropout; got normalization={self.normalization!r}, p_bias={p_bias!r}, "
                f"attention_dropout={self.attention_dropout}. Use fused=None to let the layer decide."
            )
        return possible and (runtime.fused_attention_available() if self.fused is None else self.fused)

    def _fused(self, q, k, v, allowed, added):
        mask = allowed
        if allowed is not None and added is not None:  # torch takes only one of the two
            mask, added = None, ops.where(allowed, added, ops.cast(masked_logit(added.dtype), added.dtype))
        o = ops.dot_product_attention(q, k, v, bias=added, mask=mask, scale=self._scale)
        if allowed is None:
            return o
        # The fused kernels make a row that may see nothing uniform over everything.
        seeing = ops.transpose(ops.any(allowed, axis=-1, keepdims=True), (0, 2, 1, 3))
        return ops.where(seeing, o, 0)

    def compute_output_spec(
        self, inputs, mask=None, a_bias=None, p_bias=None, cache=None, start=None, padding=None, training=None
    ):
        self._check(inputs, a_bias, p_bias, cache, start)
        (batch, queries), keys = inputs[0].shape[:2], (inputs[1] if cache is None else cache[0]).shape[1]

        def spec(*shape):
            return keras.KerasTensor(shape, dtype=self.compute_dtype)

        outputs = [spec(batch, queries, self.out_dim)]
        if self.return_cache:
            outputs.append(tuple(spec(batch, keys, *sizes) for sizes in self.cache_sizes))
        if self.return_attention_scores:
            outputs.append(spec(batch, self.score_heads, queries, keys))
        return outputs if len(outputs) > 1 else outputs[0]

    def compute_mask(self, inputs, mask=None, **kwargs):
        q_mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        outputs = [q_mask]
        outputs += [(None, None)] if self.return_cache else []
        outputs += [None] if self.return_attention_scores else []
        return outputs if len(outputs) > 1 else q_mask

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in _SETTINGS},
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _with_floats(function, tensors, places, *floats):
    """function(*tensors), with the tensors at these places replaced."""
    tensors = list(tensors)
    for place, tensor in zip(places, floats, strict=True):
        tensors[place] = tensor
    return function(*tensors)
