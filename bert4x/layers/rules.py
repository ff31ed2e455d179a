"""Rules of who may see whom, combined with &, | and ~: the algebra behind every attention mask."""

import dataclasses

from bert4x.backend import keras, ops, runtime
from bert4x.layers.base import register


class Rule:
    """Says which keys a query may see. `a & b`: what both allow; `a | b`: what one of them allows; `~a`: the rest.

    The layer `AttentionMask` puts a rule into a model, `matrix` shows it. A subclass defines `seen`; what it needs to
    know of the tokens besides their places are `roles`, names of inputs [B, S].
    """

    roles = ()

    def seen(self, queries, keys, given, start):
        """bool [B, T, S], or [1, T, S] if there are no roles: which keys the queries see.

        Args:
            queries, keys: the places of the T queries and the S keys in the sequence, int [T] and [S].
            given: {role: number of each new token [B, T]}.
            start: the place of the first new token; those before it are in a cache.
        """
        raise NotImplementedError(f"{type(self).__name__} must define seen")

    def matrix(self, length, **given):
        """The mask of `length` tokens as a NumPy array, bool [T, T]; [B, T, T] where `given` has a batch axis.

        Args:
            given: one array [T] or [B, T] for each of `roles`.
        """
        self.check(given)
        arrays = {role: ops.convert_to_tensor(values) for role, values in given.items()}
        batched = any(len(array.shape) == 2 for array in arrays.values())
        arrays = {role: array if len(array.shape) == 2 else array[None] for role, array in arrays.items()}
        places = ops.arange(length)
        seen = runtime.to_numpy(self.seen(places, places, arrays, 0))
        return seen if batched else seen[0]

    def check(self, given):
        """Raise ValueError unless every role of this rule is given."""
        lacking = sorted(set(self.roles) - set(given))
        if lacking:
            raise ValueError(
                f"{self} needs numbers of the tokens called {', '.join(lacking)}; given are {sorted(given)}. "
                "Pass all of them by these names."
            )

    def __and__(self, other):
        return Both(self, other)

    def __or__(self, other):
        return Either(self, other)

    def __invert__(self):
        return Opposite(self)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {field.name: serialize(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def _rule(cls):
    """A rule as a value: equal if its arguments are, and found by `load_model`."""
    return register(dataclasses.dataclass(frozen=True)(cls))


def _distance(queries, keys):
    return queries[:, None] - keys[None, :]


def _of_keys(values, keys, start):
    """values [B, T] of the new tokens at the places `keys` -> ([B, S], bool [S]: which keys are new tokens)."""
    last = ops.shape(values)[1] - 1
    place = keys - start
    return ops.take(values, ops.clip(place, 0, last), axis=1), (place >= 0) & (place <= last)


def _pairs(compare, values, keys, start):
    """compare(value of the key, value of the query) among new tokens; what precedes them is seen."""
    of_keys, new = _of_keys(values, keys, start)
    return (compare(of_keys[:, None, :], values[:, :, None]) & new) | (keys < start)


@_rule
class Causal(Rule):
    """Itself and what stands before it: j <= i."""

    def seen(self, queries, keys, given, start):
        return (_distance(queries, keys) >= 0)[None]


@_rule
class Window(Rule):
    """Less than `size` away: |i - j| < size. With `Causal()` the sliding window of Mistral (arXiv:2004.05150)."""

    size: int

    def __post_init__(self):
        _check_positive("size", self.size)

    def seen(self, queries, keys, given, start):
        return (ops.abs(_distance(queries, keys)) < self.size)[None]


@_rule
class Strided(Rule):
    """At distances that are multiples of `rate`: (i - j) mod rate = 0 (arXiv:1904.10509)."""

    rate: int

    def __post_init__(self):
        _check_positive("rate", self.rate)

    def seen(self, queries, keys, given, start):
        return (_distance(queries, keys) % self.rate == 0)[None]


@_rule
class Prefix(Rule):
    """UniLM: with c the running sum of the segment ids, c[j] <= c[i] (arXiv:1905.03197).

    Segment 0 sees all of itself, segment 1 that and what precedes it. Padding after a target has the c of its last
    token, so this needs the padding mask beside it. A prefix of p tokens is p zeros, then ones. Over a cache the
    new tokens see all that precedes them; what stands there does not see them, so the whole source must come at once.
    """

    roles = ("segment",)

    def seen(self, queries, keys, given, start):
        return _pairs(ops.less_equal, ops.cumsum(ops.cast(given["segment"], "int32"), axis=1), keys, start)


@_rule
class Packed(Rule):
    """The same number: samples packed into one row do not see each other. Over a cache a row is one sample."""

    roles = ("sample",)

    def seen(self, queries, keys, given, start):
        return _pairs(ops.equal, given["sample"], keys, start)


@_rule
class Padding(Rule):
    """Keys whose number is not 0, such as token ids or a mask. Over a cache all earlier keys count."""

    roles = ("keys",)

    def seen(self, queries, keys, given, start):
        counts, new = _of_keys(given["keys"] != 0, keys, start)
        return ((counts & new) | (keys < start))[:, None, :] & (queries >= 0)[:, None]


@_rule
class Both(Rule):
    """What two rules allow: `one & other`."""

    one: Rule
    other: Rule

    def __repr__(self):
        return f"({self.one} & {self.other})"

    @property
    def roles(self):
        return (*self.one.roles, *self.other.roles)

    def seen(self, *arguments):
        return ops.logical_and(self.one.seen(*arguments), self.other.seen(*arguments))


@_rule
class Either(Rule):
    """What one of two rules allows: `one | other`."""

    one: Rule
    other: Rule

    def __repr__(self):
        return f"({self.one} | {self.other})"

    @property
    def roles(self):
        return (*self.one.roles, *self.other.roles)

    def seen(self, *arguments):
        return ops.logical_or(self.one.seen(*arguments), self.other.seen(*arguments))


@_rule
class Opposite(Rule):
    """What a rule forbids: `~rule`."""

    rule: Rule

    def __repr__(self):
        return f"~{self.rule}"

    @property
    def roles(self):
        return self.rule.roles

    def seen(self, *arguments):
        return ops.logical_not(self.rule.seen(*arguments))


def _check_positive(name, value):
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
