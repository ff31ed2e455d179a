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
    seen: states [B, S, D] of which self-attention makes keys and values where the queries are fewer; None: the queries.
    scores: the attention scores handed to the next layer (residual attention), or None.
    caches: one (keys, values) per call of self-attention, in order, made in this walk.
    context: encoder states for cross-attention, and context_masks: bool [B, S] each, which of them count.
    hidden_states: the embedding output, then one per block.

    In the graph of one decoding step also
    start: the slot where this walk's tokens begin; None in the full graph.
    padding: int [B], the slot where each row begins.
    given: one (keys, values) of all slots per call of self-attention, numbered by call: ALBERT calls one layer often.
    given_context: (keys, values) of the encoder states, for each block.
    """

    masks: list = dataclasses.field(default_factory=list)
    position: Any = None
    condition: Any = None
    positions: Any = None
    seen: Any = None
    scores: Any = None
    caches: list = dataclasses.field(default_factory=list)
    context: Any = None
    context_masks: list = dataclasses.field(default_factory=list)
    hidden_states: list = dataclasses.field(default_factory=list)
    start: Any = None
    padding: Any = None
    given: list = dataclasses.field(default_factory=list)
    given_context: list = dataclasses.field(default_factory=list)

    @property
    def is_step(self):
        """Whether this is the graph of one decoding step."""
        return self.start is not None

    def cache(self):
        """What the next call of self-attention gets besides its inputs."""
        if not self.is_step:
            return {}
        return {"cache": self.given[len(self.caches)], "start": self.start, "padding": self.padding}

    def context_cache(self):
        """What the cross-attention of this block, called after its self-attention, gets besides its inputs."""
        return {"cache": self.given_context[len(self.caches) - 1]} if self.is_step else {}

    def slots(self):
        """What an application's mask gets besides its input."""
        return {"start": self.start, "padding": self.padding, "keys": self.given[0][0]} if self.is_step else {}

    def offsets(self, layer, x):
        """A layer of relative positions applied to queries x and the keys that x sees."""
        return layer([x, self.given[0][0]], start=self.start) if self.is_step else layer([x, x])


def post_norm(builder, x, name, sublayer, walk):
    """Norm(x + Dropout(sublayer(x))), as in BERT."""
    y = builder.dropout(sublayer(x), f"{name}-Dropout")
    return builder.norm(builder.add([x, y], f"{name}-Add"), f"{name}-Norm", walk)


def pre_norm(builder, x, name, sublayer, walk):
    """x + Dropout(sublayer(Norm(x))), as in GPT2 and T5."""
    y = builder.dropout(sublayer(builder.norm(x, f"{name}-Norm", walk)), f"{name}-Dropout")
    return builder.add([x, y], f"{name}-Add")
