"""Self-attention of the builders: which layer it is, its arguments, and what a weight table says of its variants."""

import difflib
import inspect

from bert4x.layers import (
    AtrousSelfAttention,
    Concatenate1D,
    LocalSelfAttention,
    MultiHeadAttention,
    SparseSelfAttention,
    SynthesizerAttention,
    TalkingHeadsAttention,
)
from bert4x.models.options import Options
from bert4x.models.weights import Source

VARIANTS = {
    "standard": MultiHeadAttention,
    "talking_heads": TalkingHeadsAttention,
    "synthesizer": SynthesizerAttention,
    "atrous": AtrousSelfAttention,
    "local": LocalSelfAttention,
    "sparse": SparseSelfAttention,
}


class SelfAttention(Options):
    """The part of a builder that makes its self-attention layers.

    attention_variant: a name of VARIANTS, or a subclass of `MultiHeadAttention`.
    attention_settings: further arguments of these layers, such as {"mode": "random", "max_length": 128}.
    """

    options = {"attention_variant": "standard", "attention_settings": None}

    @property
    def attention_class(self):
        """The class of the self-attention layers."""
        kind = self.attention_variant
        if inspect.isclass(kind) and issubclass(kind, MultiHeadAttention):
            return kind
        if kind not in VARIANTS:
            near = difflib.get_close_matches(str(kind), VARIANTS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"attention_variant must be one of {', '.join(VARIANTS)}, or a subclass of MultiHeadAttention; "
                f"got {kind!r}.{hint}"
            )
        return VARIANTS[kind]

    @property
    def attention_length(self):
        """Tokens for which the self-attention layers have numbers; None: any number."""
        if not self.attention_class.counts_positions:
            return None
        return (self.attention_settings or {}).get("max_length") or getattr(self, "max_position", None)

    @property
    def position_limit(self):
        """Number of positions that the model has a table for; None where they are relative, computed or given."""
        return self.attention_length

    @property
    def score_heads(self):
        """Heads of the scores, to which biases are added."""
        return (self.attention_settings or {}).get("softmax_heads") or self.num_attention_heads

    def attention_layer(self, name):
        """The self-attention layer of this name."""
        kind, options, settings = self.attention_class, self.attention_options(), self.attention_settings or {}
        if not isinstance(settings, dict):
            raise TypeError(f"attention_settings must be a dict; got {settings!r}")
        taken = sorted(settings.keys() & {*options, "name", "dtype"})
        if taken:
            raise ValueError(f"attention_settings hold what the model's own options decide: {', '.join(taken)}")
        length = {"max_length": self.attention_length} if kind.counts_positions else {}
        return self.layer(name, kind, **{**options, **length, **settings})

    def attention(self, x, name, walk):
        """Self-attention with the masks, position term and residual scores of this walk."""
        layer = self.attention_layer(name)
        biases = [*walk.masks] + ([] if walk.scores is None else [walk.scores])
        terms = [] if walk.position is None else [walk.position]
        position = self.attention_position if terms else None
        if layer.in_blocks:
            self._check_blocks(biases)
            o, cache, *scores = layer([x, *terms], p_bias=position)
        else:
            inputs = [x, *self._keys_and_values(x, name, walk), *biases, *terms]
            o, cache, *scores = layer(inputs, a_bias=len(biases) or None, p_bias=position, **walk.cache())
        walk.caches.append(cache)
        walk.scores = scores[0] if scores else None
        return o

    def _check_blocks(self, biases):
        """Attention in blocks has no place for the T x T masks and biases that the model makes, nor for caches."""
        if biases or self.attention_caches:
            raise ValueError(
                f"{self.attention_class.__name__} takes padding and its own pattern, no other masks, biases or caches: "
                f"use it in an encoder without attention_mask, residual_attention_scores and attention_caches; got "
                f"application={self.application!r}. A causal one: attention_settings={{'causal': True, ...}}"
            )

    def _keys_and_values(self, x, name, walk):
        """What keys and values are made of: x or what it sees, behind what attention_caches gives for this layer."""
        x = x if walk.seen is None else walk.seen
        if name not in (self.attention_caches or {}):
            return x, x
        if self.attention_position or self.application != "encoder" or self.attention_class.counts_positions:
            raise ValueError(
                "attention_caches put states before the keys and values of an encoder with absolute positions; "
                f"{type(self).__name__} counts positions inside attention, or masks by position"
            )
        parts = zip(("Keys", "Values"), self.attention_caches[name], strict=True)
        return [self.layer(f"{name}-Cached-{part}", Concatenate1D)([cache, x]) for part, cache in parts]

    def attention_options(self):
        """Arguments of every attention layer; a family adds what its own differ in."""
        return {
            "heads": self.num_attention_heads,
            "head_size": self.attention_head_size,
            "key_size": self.attention_key_size,
            "out_dim": self.hidden_size,
            "use_bias": self.use_bias,
            "attention_dropout": self.attention_dropout_rate,
            "kernel_initializer": self.initializer,
            "return_cache": True,
            "return_attention_scores": self.residual_attention_scores,
            "fused": self.fused_attention,
            "remat": self.remat,
        }

    def fitted_table(self, table):
        """A weight table for the attention layers that there are: a variant may lack queries and keys.

        Its own weights stand beside the projection of the values; a file need not hold them.
        """
        fitted = dict(table)
        for name, rows in table.items():
            layer = self.layers.get(name)
            if isinstance(layer, MultiHeadAttention) and "value/kernel" in rows:
                value = rows["value/kernel"]
                place = (value.name if isinstance(value, Source) else value).removesuffix("/kernel").rpartition("/")[0]
                kept = {path: row for path, row in rows.items() if _has_part(layer, path.partition("/")[0])}
                fitted[name] = kept | {path: Source(f"{place}/{path}", optional=True) for path in layer.own_weights}
        return fitted


def _has_part(layer, part):
    return part not in ("query", "key") or hasattr(layer, part)
