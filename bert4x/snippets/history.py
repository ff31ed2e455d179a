"""Logits processors that look at what was written: repetition, n-grams, bad words, forced prefix, least length.

Padding never counts as written. By default the prompt does, as in transformers; `prompt=False` leaves it out, so that a
summary may repeat its source.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bert4x.backend import ops
from bert4x.snippets.filters import BANNED, allowed, ban
from bert4x.snippets.processors import Processor, as_token_ids, check_integer, check_real


@dataclass(frozen=True)
class RepetitionPenalty(Processor):
    """Logits of tokens that were written are divided by the penalty where positive, multiplied where negative.

    Args:
        penalty: positive; above 1 discourages repetition.
        prompt: count the tokens of the prompt too.
    Source: arXiv:1909.05858.
    """

    penalty: float
    prompt: bool = True
    numbers: ClassVar[dict] = {"penalty": "float32"}
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        check_real(self, "penalty", above=0)

    def apply(self, logits, context, penalty):
        """The logits with the penalty."""
        penalized = ops.where(logits < 0, logits * penalty, logits / penalty)
        written = _written(context, self.prompt, logits.shape[-1]) > 0
        return ops.where(ops.logical_and(written, allowed(logits)), penalized, logits)


@dataclass(frozen=True)
class PresencePenalty(Processor):
    """The penalty is subtracted from the logits of tokens that were written.

    Args:
        penalty: in units of the logits; negative encourages repetition.
        prompt: count the tokens of the prompt too; not by default, as in the services that offer this penalty.
    """

    penalty: float
    prompt: bool = False
    numbers: ClassVar[dict] = {"penalty": "float32"}
    rank: ClassVar[int] = 1
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        check_real(self, "penalty")

    def apply(self, logits, context, penalty):
        """The logits with the penalty."""
        written = _written(context, self.prompt, logits.shape[-1]) > 0
        return _subtracted(logits, penalty * ops.cast(written, "float32"))


@dataclass(frozen=True)
class FrequencyPenalty(Processor):
    """The penalty is subtracted from the logits of a token as many times as it was written.

    Args:
        penalty: in units of the logits; negative encourages repetition.
        prompt: count the tokens of the prompt too.
    """

    penalty: float
    prompt: bool = False
    numbers: ClassVar[dict] = {"penalty": "float32"}
    rank: ClassVar[int] = 1
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        check_real(self, "penalty")

    def apply(self, logits, context, penalty):
        """The logits with the penalty."""
        return _subtracted(logits, penalty * _written(context, self.prompt, logits.shape[-1]))


@dataclass(frozen=True)
class NoRepeatNGram(Processor):
    """A token is out that would complete an n-gram that was written before.

    Args:
        size: n, in tokens, at least 1; 1 means that no token occurs twice.
        prompt: count the n-grams of the prompt too.
    """

    size: int
    prompt: bool = True
    rank: ClassVar[int] = 2
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        check_integer(self, "size", 1)

    def apply(self, logits, context):
        """The logits without these tokens."""
        windows = context.tokens.shape[1] - self.size + 1  # window i is the n-gram in slots i ... i + n - 1
        if windows < 1:
            return logits
        recent = _recent(context, self.size - 1)
        valid = _counted_slots(context, self.prompt)
        # The first slot of a window is the leftmost, the last one the newest: between them all are valid.
        repeated = ops.logical_and(valid[:, :windows], valid[:, self.size - 1 :])
        for i in range(self.size - 1):
            same = ops.equal(context.tokens[:, i : i + windows], recent[:, i : i + 1])
            repeated = ops.logical_and(repeated, same)
        counts = _counts(context.tokens[:, self.size - 1 :], repeated, logits.shape[-1])
        return ban(logits, counts > 0)


@dataclass(frozen=True)
class BadWords(Processor):
    """Words, as sequences of token ids, that must not be written: the last token of one is out after its others.

    Args:
        words: sequences of token ids, none empty. A word of one token is never written.
    """

    words: tuple
    numbers: ClassVar[dict] = {"words": "int32"}
    rank: ClassVar[int] = 3
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        words = tuple(as_token_ids(self, "words", word) for word in self.words)
        if not words:
            raise ValueError("BadWords.words must hold at least one word; got none. Leave the processor out.")
        object.__setattr__(self, "words", words)

    def arrays(self):
        """The words as one int32 array [words, longest], filled with -1 at the left."""
        array = np.full((len(self.words), max(map(len, self.words))), -1, "int32")
        for row, word in zip(array, self.words, strict=True):
            row[-len(word) :] = word
        return (array,)

    def token_ids(self):
        """All ids of all words."""
        return {"words": tuple(i for word in self.words for i in word)}

    def apply(self, logits, context, words):
        """The logits without the tokens that would end a bad word."""
        starts, ends = words[:, :-1], words[:, -1]
        recent = ops.expand_dims(_recent(context, starts.shape[1]), 1)
        complete = ops.all(ops.logical_or(ops.equal(recent, starts), starts < 0), axis=-1)
        ends = ops.broadcast_to(ends, ops.shape(complete))
        return ban(logits, _counts(ends, complete, logits.shape[-1]) > 0)


@dataclass(frozen=True)
class MinNewTokens(Processor):
    """The end tokens are out until `count` tokens have been written after the prompt.

    Args:
        count: at least 0.
        end_ids: id of the end token, or several.
    """

    count: int
    end_ids: tuple
    numbers: ClassVar[dict] = {"count": "int32", "end_ids": "int32"}
    rank: ClassVar[int] = 4
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        check_integer(self, "count", 0)
        object.__setattr__(self, "end_ids", as_token_ids(self, "end_ids", self.end_ids))

    def token_ids(self):
        """The end tokens."""
        return {"end_ids": self.end_ids}

    def apply(self, logits, context, count, end_ids):
        """The logits without end tokens, if it is too early for them."""
        is_end = ops.any(ops.equal(ops.expand_dims(end_ids, 1), _ids(logits)), axis=0)
        return ban(logits, ops.logical_and(is_end, context.step < count))


@dataclass(frozen=True)
class ForcedPrefix(Processor):
    """The first new tokens are given: in step i only the i-th of them is in, with logit 0.

    Args:
        tokens: token ids, at least one.
    """

    tokens: tuple
    numbers: ClassVar[dict] = {"tokens": "int32"}
    rank: ClassVar[int] = 5
    reads_context: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "tokens", as_token_ids(self, "tokens", self.tokens))

    def token_ids(self):
        """The given tokens."""
        return {"tokens": self.tokens}

    def apply(self, logits, context, tokens):
        """The logits of the given token in the first steps, later the logits as they are."""
        count = tokens.shape[0]
        token = ops.take(tokens, ops.minimum(context.step, count - 1), axis=0)
        return ops.where(context.step < count, ops.where(ops.equal(_ids(logits), token), 0.0, BANNED), logits)


def _ids(logits):
    """Token ids as int32 [1, V]."""
    return ops.expand_dims(ops.arange(logits.shape[-1], dtype="int32"), 0)


def _subtracted(logits, penalties):
    return ops.where(allowed(logits), logits - penalties, logits)


def _counted_slots(context, prompt):
    """True for slots that hold a token of the row, if `prompt` is false one after the prompt: bool [N, L]."""
    slots = ops.expand_dims(ops.arange(context.tokens.shape[1], dtype="int32"), 0)
    first = ops.expand_dims(context.padding, 1)
    if not prompt:
        first = ops.maximum(first, context.prompt_length)
    return ops.logical_and(slots >= first, slots < context.length)


def _recent(context, count):
    """The last `count` tokens, int32 [N, count], -2 (which equals nothing) where a row has fewer."""
    slots = context.length - count + ops.arange(count, dtype="int32")
    tokens = ops.take(context.tokens, ops.maximum(slots, 0), axis=1)
    return ops.where(slots >= ops.expand_dims(context.padding, 1), tokens, -2)


def _written(context, prompt, size):
    """How often each token was written: float32 [N, V]."""
    return _counts(context.tokens, _counted_slots(context, prompt), size)


def _counts(ids, valid, size):
    """How often each id below size occurs in a row where `valid` is true: float32 [N, size] of int32 [N, M]."""
    rows = ops.shape(ids)[0]
    # An embedding may have more rows than there are logits, and padding may hold any id: neither counts.
    valid = ops.logical_and(valid, ops.logical_and(ids >= 0, ids < size))
    places = ops.clip(ids, 0, size - 1) + size * ops.expand_dims(ops.arange(rows, dtype="int32"), 1)
    counts = ops.scatter(ops.reshape(places, (-1, 1)), ops.reshape(ops.cast(valid, "float32"), (-1,)), (rows * size,))
    return ops.reshape(counts, (rows, size))
