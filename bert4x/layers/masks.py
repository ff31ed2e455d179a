"""Attention masks as layers: boolean tensors, True = query i may see key j. The rules themselves are in `rules`."""

from bert4x.backend import combine_masks, keras, ops
from bert4x.layers.base import Layer, register
from bert4x.layers.rules import Causal, Prefix, Window


class _MaskLayer(Layer):
    """A layer whose output is a boolean mask, so it carries no padding mask itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False

    def compute_mask(self, inputs, mask=None):
        return None


@register
class AttentionMask(_MaskLayer):
    """A rule applied to tokens: T tokens one another, or T new tokens and the S slots of a cache.

    With a cache the tokens stand in the slots from `start`, and the rows of the batch begin at the slots `padding`.

    Args:
        rule: e.g. `Causal() & Window(128)`, `Prefix()`, `Packed() & Causal()`; see `bert4x.layers.rules`.
    Call: one tensor, which is also the numbers that the rule asks for if it asks for one kind; a dict {role: numbers}
        where it asks for several.
    Shapes: [B, T, ...] or {role: [B, T]} -> bool [B, T, T], [1, T, T] where the rule asks for no numbers;
        with start [], padding [B] and keys [B, S, ...] -> bool [B, T, S].
    Raises: ValueError if numbers that the rule asks for are not given.
    """

    def __init__(self, rule, **kwargs):
        super().__init__(**kwargs)
        self.rule = rule if not isinstance(rule, dict) else keras.saving.deserialize_keras_object(rule)

    def call(self, inputs, start=None, padding=None, keys=None):
        tokens, given = self._given(inputs)
        new = ops.arange(ops.shape(tokens)[1])
        if start is None:
            return self.rule.seen(new, new, given, 0)
        slots = ops.arange(ops.shape(keys)[1])
        seen = self.rule.seen(start + new, slots, given, start)
        return ops.logical_and(seen, (slots[None, :] >= padding[:, None])[:, None, :])

    def _given(self, inputs):
        """A tensor as long as the sequence, and {role: numbers}."""
        roles = sorted(set(self.rule.roles))
        given = inputs if isinstance(inputs, dict) else dict.fromkeys(roles[:1], inputs)
        self.rule.check(given)
        return (next(iter(inputs.values())) if isinstance(inputs, dict) else inputs), given

    def compute_output_spec(self, inputs, start=None, padding=None, keys=None):
        batch, length = self._given(inputs)[0].shape[:2]
        if start is not None:
            return keras.KerasTensor((batch, length, keys.shape[1]), dtype="bool")
        return keras.KerasTensor((batch if self.rule.roles else 1, length, length), dtype="bool")

    def get_config(self):
        return {**super().get_config(), "rule": keras.saving.serialize_keras_object(self.rule)}


class _FixedRule(AttentionMask):
    """A mask layer whose rule is its class."""

    def get_config(self):
        config = super().get_config()
        del config["rule"]
        return config


@register
class CausalMask(_FixedRule):
    """Each position sees itself and what stands before it: j <= i, and with a window j > i - window.

    The rule `Causal()`, or `Causal() & Window(window)`.

    Args:
        window: number of positions seen, at least 1; None: all (arXiv:2004.05150).
    Shapes: any [B, T, ...] -> bool [1, T, T]; over a cache bool [B, T, S].
    """

    def __init__(self, *, window=None, **kwargs):
        super().__init__(Causal() if window is None else Causal() & Window(window), **kwargs)
        self.window = window

    def get_config(self):
        return {**super().get_config(), "window": self.window}


@register
class UniLMMask(_FixedRule):
    """Source tokens (segment 0) see the whole source, target tokens (segment 1) the source and what precedes them.

    The rule `Prefix()`, which says more.

    Shapes: int [B, T] segment ids -> bool [B, T, T]; over a cache bool [B, T, S].
    Source: arXiv:1905.03197.
    """

    def __init__(self, **kwargs):
        super().__init__(Prefix(), **kwargs)


@register
class CombinedMask(_MaskLayer):
    """What all of the masks allow that are given as [B, T, T] or [B, T] (keys), any number type.

    Rules are combined with & before they become tensors; this is for masks that come as tensors.

    Shapes: list of [B or 1, T, T] or [B, T] -> bool [B, T, T] or [B, 1, T].
    """

    def call(self, inputs):
        masks = [ops.cast(mask, "bool") for mask in inputs]
        return combine_masks(*(mask[:, None, :] if len(mask.shape) == 2 else mask for mask in masks))

    def compute_output_spec(self, inputs):
        shapes = [(m.shape[0], 1, m.shape[1]) if len(m.shape) == 2 else tuple(m.shape) for m in inputs]
        shape = shapes[0]
        for other in shapes[1:]:
            shape = tuple(b if a == 1 else a for a, b in zip(shape, other, strict=True))
        return keras.KerasTensor(shape, dtype="bool")
