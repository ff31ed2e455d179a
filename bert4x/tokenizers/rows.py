"""One row of ids: its parts, and how they are cut to a length."""

from array import array
from dataclasses import dataclass


@dataclass(slots=True)
class Part:
    """One text of a row: packed ids of the tokens before it, of its own (these may be cut), and after it."""

    lead: bytes
    body: bytes
    tail: bytes
    spans: list | None

    def cut(self, start, stop):
        """Removes the tokens start:stop of the body."""
        self.body = self.body[: 4 * start] + self.body[4 * stop :]
        if self.spans is not None:
            self.spans = self.spans[:start] + self.spans[stop:]


def pack(ids):
    """Ids as the bytes of int32, which are joined, cut and made an array without touching single ids."""
    return array("i", ids).tobytes()


def row_spans(parts):
    spans = []
    for part in parts:
        spans += [None] * (len(part.lead) // 4) + part.spans + [None] * (len(part.tail) // 4)
    return spans


def content_length(maxlen, specials):
    if maxlen < specials:
        raise ValueError(f"maxlen must leave room for the {specials} special tokens; got {maxlen}. Raise it.")
    return maxlen - specials


def truncate(parts, maxlen, truncate_from):
    """Cuts the bodies so that all parts together have at most `maxlen` tokens."""
    specials = sum(len(part.lead) + len(part.tail) for part in parts) // 4
    budget = content_length(maxlen, specials)
    lengths = [len(part.body) // 4 for part in parts]
    if sum(lengths) > budget:
        for part, length, kept in zip(parts, lengths, _kept_lengths(lengths, budget), strict=True):
            start = _cut_start(part, kept, truncate_from)
            part.cut(start, start + length - kept)


def _kept_lengths(lengths, budget):
    """What is left when the longer one loses a token, the first on ties, until the sum fits the budget."""
    if len(lengths) == 1:
        return [budget]
    first, second = lengths
    half = budget // 2
    if first <= half:
        return [first, budget - first]
    if second <= budget - half:
        return [budget - second, second]
    return [half, budget - half]


def _cut_start(part, kept, truncate_from):
    """First token of the body to drop, so that `kept` tokens remain."""
    if truncate_from == "right":
        return kept
    if truncate_from == "left":
        return 0
    if truncate_from >= 0:
        start = truncate_from - len(part.lead) // 4
    else:
        start = kept + truncate_from + 1 + len(part.tail) // 4
    return min(max(start, 0), kept)
