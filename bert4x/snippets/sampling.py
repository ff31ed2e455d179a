"""How the next token is chosen: processors (logits -> logits) and samplers (logits -> token), as frozen dataclasses.

All of them run eagerly and inside compiled loops. What may change from call to call without a new compilation (numbers,
token ids) is in `arrays()`; what may not is in `structure`, a key for a cache of compiled functions:

    chain = Chain.in_order([TopP(0.9), Temperature(0.7), RepetitionPenalty(1.2)])
    step = jit(lambda logits, context, arrays: chain(logits, context, arrays))
    step(logits, context, chain.arrays())

is right for every chain of equal `structure`. The order of transformers' `generate`, which `Chain.in_order` gives, is:
penalties, n-grams, bad words, min length, forced prefix; then temperature, top-k, top-p, min-p, typical; then the draw.
"""

from dataclasses import dataclass
from typing import ClassVar

from bert4x.backend import ops
from bert4x.snippets.filters import draw, filter_min_p, filter_top_k, filter_top_p, filter_typical, scale
from bert4x.snippets.processors import Chain, Processor, check_integer, check_real


@dataclass(frozen=True)
class Temperature(Processor):
    """(logits - their maximum) / temperature: below 1 the probable tokens become more probable.

    Args:
        temperature: positive.
    """

    temperature: float
    numbers: ClassVar[dict] = {"temperature": "float32"}
    rank: ClassVar[int] = 20

    def __post_init__(self):
        check_real(self, "temperature", above=0, remedy=" For the most probable token use Greedy().")

    def apply(self, logits, context, temperature):
        """The scaled logits."""
        return scale(logits, temperature)


@dataclass(frozen=True)
class TopK(Processor):
    """The k most probable tokens stay, and those that equal the k-th. See `filter_top_k`.

    Args:
        k: at least 1; may exceed the vocabulary.
    """

    k: int
    numbers: ClassVar[dict] = {"k": "int32"}
    rank: ClassVar[int] = 21

    def __post_init__(self):
        check_integer(self, "k", 1)

    def apply(self, logits, context, k):
        """The filtered logits."""
        return filter_top_k(logits, k)


@dataclass(frozen=True)
class TopP(Processor):
    """The most probable tokens stay that reach probability p together (nucleus). See `filter_top_p`.

    Args:
        p: in (0, 1]; 1 keeps all.
    Source: arXiv:1904.09751.
    """

    p: float
    numbers: ClassVar[dict] = {"p": "float32"}
    rank: ClassVar[int] = 22

    def __post_init__(self):
        check_real(self, "p", above=0, most=1)

    def apply(self, logits, context, p):
        """The filtered logits."""
        return filter_top_p(logits, p)


@dataclass(frozen=True)
class MinP(Processor):
    """Tokens stay that have at least p times the probability of the most probable one. See `filter_min_p`.

    Args:
        p: in [0, 1]; 0 keeps all.
    Source: arXiv:2407.01082.
    """

    p: float
    numbers: ClassVar[dict] = {"p": "float32"}
    rank: ClassVar[int] = 23

    def __post_init__(self):
        check_real(self, "p", least=0, most=1)

    def apply(self, logits, context, p):
        """The filtered logits."""
        return filter_min_p(logits, p)


@dataclass(frozen=True)
class Typical(Processor):
    """The tokens stay whose information is nearest to the entropy, until they reach probability p together.

    Args:
        p: in (0, 1]; 1 keeps all.
    Source: arXiv:2202.00666. See `filter_typical`.
    """

    p: float
    numbers: ClassVar[dict] = {"p": "float32"}
    rank: ClassVar[int] = 24

    def __post_init__(self):
        check_real(self, "p", above=0, most=1)

    def apply(self, logits, context, p):
        """The filtered logits."""
        return filter_typical(logits, p)


@dataclass(frozen=True)
class Greedy:
    """The most probable token, of equals the lowest id."""

    structure: ClassVar[tuple] = ("Greedy",)
    needs_uniforms: ClassVar[bool] = False

    def __call__(self, logits, uniforms=None, arrays=None):
        """Tokens int32 [N] of float logits [N, V]; the other arguments are those of `Sample`, unused."""
        return ops.cast(ops.argmax(logits, axis=-1), "int32")

    def arrays(self):
        """There are no numbers: an empty tuple."""
        return ()


@dataclass(frozen=True)
class Sample:
    """A token drawn by its probability after temperature, top-k, top-p, min-p and typical, in this order.

    Args:
        temperature: positive.
        top_k, top_p, min_p, typical_p: see `TopK`, `TopP`, `MinP` and `Typical`; None for not at all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    needs_uniforms: ClassVar[bool] = True

    def __post_init__(self):
        self.chain  # noqa: B018  a wrong number is an error here, not at the first draw

    @property
    def chain(self):
        """The processors that come before the draw."""
        kinds = (TopK, self.top_k), (TopP, self.top_p), (MinP, self.min_p), (Typical, self.typical_p)
        return Chain((Temperature(self.temperature), *(kind(number) for kind, number in kinds if number is not None)))

    def __call__(self, logits, uniforms, arrays=None):
        """One token of each row.

        Args:
            logits: float [N, V].
            uniforms: float32 [N] in [0, 1), such as a row of `uniform_numbers`. A row's token depends on its logits and
                its number, not on the other rows.
            arrays: as `arrays()` of a sampler of equal `structure`; None for the own ones.
        Returns: int32 [N].
        """
        return draw(self.chain(logits, None, arrays), uniforms)

    def arrays(self):
        """The numbers as NumPy arrays: those of the chain."""
        return self.chain.arrays()

    @property
    def structure(self):
        """Hashable key: which of the filters there are."""
        return ("Sample", self.chain.structure)
