"""The base of all logits processors (logits -> logits), what they may look at, and chains of them."""

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import numpy as np

from bert4x.backend import keras, ops
from bert4x.snippets.filters import ABSENT, ban


class Context(NamedTuple):
    """What was written so far, for N rows that are padded on the left to the same number of slots.

    Shapes: (L slots of the buffer; only those in [padding, length) hold tokens of the row)
        tokens: int32 [N, L]              length: int32 scalar, slots filled, prompt included
        padding: int32 [N], unused slots at the left
        prompt_length: int32 scalar, slots of the prompt       step: int32 scalar, 0 for the first new token
    """

    tokens: object
    length: object
    padding: object
    prompt_length: object
    step: object


@dataclass(frozen=True)
class Processor:
    """Base of all processors: `processor(logits, context, arrays)` gives new logits.

    A subclass is a frozen dataclass. It names in `numbers` the fields that enter as arrays, with their dtypes, and
    defines `apply(logits, context, *arrays)` in operations that compile.
    """

    numbers: ClassVar[dict] = {}
    rank: ClassVar[int] = 0  # place in the order of transformers
    reads_context: ClassVar[bool] = False

    def __call__(self, logits, context=None, arrays=None):
        """New logits, float32 [N, V]; those of tokens that are out are -1e9.

        Args:
            logits: float [N, V]; at or below -1e4 a token is out already.
            context: `Context`; processors that look at the logits only need none.
            arrays: as `arrays()` of a processor of equal `structure`; None for the own ones.
        """
        if context is None and self.reads_context:
            raise TypeError(f"{type(self).__name__} reads what was written so far: pass a Context; got None.")
        if arrays is None:
            self.check(logits.shape[-1])
            arrays = keras.tree.map_structure(ops.convert_to_tensor, self.arrays())
        logits = ops.cast(logits, "float32")
        return self.apply(ban(logits, logits <= ABSENT), context, *arrays)

    def apply(self, logits, context, *arrays):
        """What a subclass defines: new logits, with the arrays as arguments."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(logits, context, *arrays).")

    def check(self, vocab_size):
        """Raises ValueError if a token id is not below vocab_size, the number of logits."""
        for name, ids in self.token_ids().items():
            if ids and max(ids) >= vocab_size:
                raise ValueError(
                    f"{type(self).__name__}.{name} must be below the number of logits; got {max(ids)} and {vocab_size}."
                    " Do the vocabulary and the model belong together?"
                )

    def token_ids(self):
        """The token ids in each field that holds some: dict of tuples."""
        return {}

    def arrays(self):
        """The fields in `numbers` as a tuple of NumPy arrays."""
        return tuple(np.asarray(getattr(self, name), dtype) for name, dtype in self.numbers.items())

    @property
    def structure(self):
        """Hashable key: what a compiled function depends on, namely class, shapes and the fields not in `numbers`."""
        static = tuple(getattr(self, field.name) for field in fields(self) if field.name not in self.numbers)
        return (type(self), static, tuple(array.shape for array in self.arrays()))


@dataclass(frozen=True)
class Chain(Processor):
    """Several processors, applied one after the other."""

    processors: tuple = ()

    def __post_init__(self):
        for processor in self.processors:
            if not isinstance(processor, Processor):
                raise TypeError(f"A Chain is made of processors; got {processor!r}.")
        object.__setattr__(self, "processors", tuple(self.processors))

    @classmethod
    def in_order(cls, processors):
        """A chain in the order of transformers, whatever the order given; those of one kind keep theirs."""
        return cls(tuple(sorted(cls(processors).processors, key=lambda processor: processor.rank)))

    def apply(self, logits, context, *arrays):
        """The logits after all processors."""
        for processor, own in zip(self.processors, arrays, strict=True):
            logits = processor(logits, context, own)
        return logits

    def check(self, vocab_size):
        """Raises ValueError if a token id of a processor is not below vocab_size."""
        for processor in self.processors:
            processor.check(vocab_size)

    def arrays(self):
        """The arrays of each processor: a tuple of tuples."""
        return tuple(processor.arrays() for processor in self.processors)

    @property
    def structure(self):
        """The structures of all processors."""
        return (type(self), *(processor.structure for processor in self.processors))


def check_real(owner, name, *, above=-np.inf, least=-np.inf, most=np.inf, remedy=""):
    """Raises unless a field is a real number with above < number, least <= number <= most."""
    number = getattr(owner, name)
    if not isinstance(number, Real) or isinstance(number, bool):
        raise TypeError(f"{type(owner).__name__}.{name} must be a number; got {number!r}.")
    if not (above < number < np.inf and least <= number <= most):
        lower = f"above {above}" if above > -np.inf else f"at least {least}"
        rule = "finite" if lower.endswith("-inf") else lower + (f" and at most {most}" if most < np.inf else "")
        raise ValueError(f"{type(owner).__name__}.{name} must be {rule}; got {number}.{remedy}")


def check_integer(owner, name, least):
    """Raises unless a field is an integer of at least `least`."""
    number = getattr(owner, name)
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise TypeError(f"{type(owner).__name__}.{name} must be an integer; got {number!r}.")
    if number < least:
        raise ValueError(f"{type(owner).__name__}.{name} must be at least {least}; got {number}.")


def as_token_ids(owner, name, ids):
    """Token ids as a tuple of ints; a single id counts as a list of one."""
    ids = (ids,) if isinstance(ids, Integral) else tuple(ids)
    for i in ids:
        if not isinstance(i, Integral) or isinstance(i, bool):
            raise TypeError(f"{type(owner).__name__}.{name} must hold token ids; got {i!r}.")
    if not ids or min(ids) < 0:
        raise ValueError(f"{type(owner).__name__}.{name} must be one token id or more, all at least 0; got {ids}.")
    return tuple(int(i) for i in ids)
