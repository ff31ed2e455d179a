"""What is trained: patterns of trainable layers, and LoRA."""

import re

from bert4x.layers import MultiHeadAttention


def set_trainable(model, patterns):
    """Train only the layers whose name matches one of the patterns.

    Args:
        model: Keras model; compile it after this call.
        patterns: regular expressions searched in layer names, or True / False for all or none.
    Raises: ValueError if a pattern matches no layer.
    """
    if isinstance(patterns, bool):
        patterns = [""] if patterns else []
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [layer.name for layer in model.layers]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"the pattern {pattern!r} of `trainable` is no regular expression: {error}") from error
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"the pattern {pattern!r} of `trainable` matches no layer; layers: {', '.join(names)}")
    for layer in model.layers:
        layer.trainable = any(re.search(pattern, layer.name) for pattern in patterns)


def enable_lora(model, rank, *, alpha=None):
    """Freeze a model except low-rank additions to the query and value kernels (and the biases of these two).

    The weights that a variant of attention has besides are trained too: a checkpoint may not have brought them.

    W x + (alpha / rank) A B x with A [D, rank], B [rank, H K], B starting at zero.

    Args:
        rank: rank of the additions, >= 1.
        alpha: scale; rank if absent.
    Source: arXiv:2106.09685.
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"lora_rank must be an integer of at least 1; got {rank!r}")
    for layer in model.layers:
        if not isinstance(layer, MultiHeadAttention):
            layer.trainable = False
            continue
        parts = {name: getattr(layer, name) for name in ("query", "key", "value", "out") if hasattr(layer, name)}
        for name, dense in parts.items():
            if name in ("key", "out"):
                dense.trainable = False
            elif not dense.lora_enabled:
                dense.enable_lora(rank, lora_alpha=alpha)
