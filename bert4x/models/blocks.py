"""One walk over the graph, and the two ways to put a residual connection and a norm around a sublayer."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Pass:
    """State of one walk over the graph; never kept on the builder.

    masks: boolean attention masks, [B or 1, T or 1, S] each.
    position: the tensor that the family's attention takes as position term, or None.
    condition: the condition of all layer norms, or None.
    positions: position ids [B, T] given by the user, or None.
    scores: the attention scores handed to the next layer (residual attention), or None.
    caches: one (keys, values) per attention call, in order: given ones in a step graph, and those made in this walk.
    start: the slot where this walk's tokens begin (step graph), or None.
    context: encoder states for cross-attention, and context_masks: bool [B, S] each, which of them count.
    hidden_states: the embedding output, then one per block.
    """

    masks: list = dataclasses.field(default_factory=list)
    position: Any = None
    condition: Any = None
    positions: Any = None
    scores: Any = None
    caches: list = dataclasses.field(default_factory=list)
    start: Any = None
    context: Any = None
    context_masks: list = dataclasses.field(default_factory=list)
    hidden_states: list = dataclasses.field(default_factory=list)


def post_norm(builder, x, name, sublayer, walk):
    """Norm(x + Dropout(sublayer(x))), as in BERT."""
    y = builder.dropout(sublayer(x), f"{name}-Dropout")
    return builder.norm(builder.add([x, y], f"{name}-Add"), f"{name}-Norm", walk)


def pre_norm(builder, x, name, sublayer, walk):
    """x + Dropout(sublayer(Norm(x))), as in GPT2 and T5."""
    y = builder.dropout(sublayer(builder.norm(x, f"{name}-Norm", walk)), f"{name}-Dropout")
    return builder.add([x, y], f"{name}-Add")
