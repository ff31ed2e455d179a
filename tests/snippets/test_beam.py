"""Beam search against plain Python over the full graph, and against all sequences that there are."""

import dataclasses
import functools

import numpy as np
import pytest

from bert4x.models import build_transformer_model
from bert4x.snippets.generation import Beam, Generator
from tests.models.reference_weights import randomize
from tests.snippets import test_generation
from tests.snippets.oracle import ALLOWED, NEW, PROMPTS, TABLE, Case, beam, every_sequence, uncompiled
from tests.snippets.test_generation import case_of, constraint, generate

# (length penalty, early stopping)
SETTINGS = [(0.0, False), (1.0, False), (2.0, "never"), (-1.0, "never"), (1.0, True), (0.0, "never")]
CASES = [("gpt2", ends, setting) for ends in ([9], [5, 9]) for setting in SETTINGS]
CASES += [("bert unilm, condition", [6, 13], setting) for setting in SETTINGS[1:3]]
CASES += [("t5.1.1", [6], setting) for setting in SETTINGS[:2]]
COMPILED = [("gpt2", ends, setting) for ends in ([], [9]) for setting in SETTINGS[:2]]  # one program


def check(want, got, tolerance):
    """Tokens and scores, the n best."""
    assert got[0] == [[tokens for _, tokens in pool] for pool in want]
    for pool, scores in zip(want, got[1], strict=True):
        np.testing.assert_allclose(scores, [score for score, _ in pool], rtol=tolerance, atol=10 * tolerance)


def search(row, size, setting, **options):
    return generate(row, strategy=Beam(size, *setting), n=size, **options)


@pytest.mark.parametrize("row, ends, setting", COMPILED)
def test_compiled(row, ends, setting, tolerance):
    want = beam(case_of(row), NEW, ends, size=3, penalty=setting[0], early=setting[1])
    check(want, search(row, 3, setting, ends=ends), tolerance)


@pytest.fixture
def eager(monkeypatch):
    """A generator of its own for each row, whose parts TensorFlow does not compile."""
    uncompiled(monkeypatch)
    monkeypatch.setattr(test_generation, "generator_of", generator_of)


@functools.cache
def generator_of(row):
    return Generator(case_of(row).builder)


@pytest.mark.parametrize("row, ends, setting", [case for case in CASES if case not in COMPILED])
def test_rules(row, ends, setting, tolerance, eager):
    """Ended hypotheses, several end tokens, length penalties (negative too), early stopping."""
    want = beam(case_of(row), NEW, ends, size=3, penalty=setting[0], early=setting[1])
    check(want, search(row, 3, setting, ends=ends), tolerance)
    if ends:
        assert any(len(tokens) < NEW for pool in want for _, tokens in pool) or setting[0] == 2


def test_a_beam_of_one_without_ends_is_greedy(eager):
    got, scores = generate("gpt2", strategy=Beam(1))
    want, greedy = generate("gpt2")
    assert got == want and np.all(np.array(scores) < greedy)  # of all tokens, banned ones too


def test_batched_equals_one_by_one(tolerance):
    tokens, scores = search("gpt2", 3, (0.0, False), ends=[9])
    for i, prompt in enumerate(PROMPTS):
        (one,), (score,) = search("gpt2", 3, (0.0, False), ends=[9], prompts=[prompt])
        assert one == tokens[i]
        np.testing.assert_allclose(score, scores[i], atol=10 * tolerance)
    best = generate("gpt2", strategy=Beam(3), ends=[9], prompts=PROMPTS[::-1])[0]
    assert best == [pool[0] for pool in tokens[::-1]]


# ---- all sequences -------------------------------------------------------------------------------------------------


@functools.cache
def toy():
    """Five tokens."""
    builder = build_transformer_model(None, None, "gpt2", "lm", False, **{**TABLE, "vocab_size": 5})
    randomize(builder.model)
    return Case(builder, [[3, 1], [2]])


@pytest.mark.parametrize("ends, penalty", [([], 0.0), ([4], 0.0), ([4], 1.0), ([4], 3.0), ([1, 4], 1.0)])
def test_a_beam_of_all_sequences_is_exhaustive(ends, penalty, tolerance, eager):
    """K = V ** n: beyond the vocabulary of 5, and more than there are hypotheses where some end early."""
    case, size = toy(), 5**3
    got = Generator(case.builder, ends).generate(
        case.prompts, 3, strategy=Beam(size, penalty), n=size, return_scores=True
    )
    for number, (tokens, scores) in enumerate(zip(*got, strict=True)):
        every = {w: s / len(w) ** penalty for w, s in every_sequence(case, number, 3, ends).items()}
        assert {tuple(w) for w in tokens} == set(every) and len(tokens) == len(every)
        np.testing.assert_allclose(scores, sorted(every.values(), reverse=True), atol=10 * tolerance)
        np.testing.assert_allclose(scores, [every[tuple(w)] for w in tokens], atol=10 * tolerance)
    assert len(every) == 125 if not ends else len(every) < 125


# ---- hooks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS[:1])
def test_hooks_constrain_by_prompt(setting, tolerance, eager):
    allowed = ALLOWED.copy()
    allowed[0, [13, 8]] = allowed[1, 5] = allowed[2, 1:9:2] = False
    want = beam(dataclasses.replace(case_of("gpt2"), allowed=allowed), NEW, [9], size=3, penalty=setting[0])
    seen = []
    got = search("gpt2", 3, setting, ends=[9], on_logits=constraint(allowed, seen))
    check(want, got, tolerance)
    assert seen[:6] == [(0, []), (1, []), (2, []), (0, seen[3][1]), (0, seen[4][1]), (0, seen[5][1])]
    assert max(map(len, (written for _, written in seen))) <= NEW - 1


def only(words):
    """A hook that allows these words after every prompt: a dictionary, or a grammar."""
    def on_logits(logits, rows):
        for row, (_, written) in zip(logits, rows, strict=True):
            following = {w[len(written)] for w in words if w[: len(written)] == written and len(w) > len(written)}
            row[[token not in following for token in range(len(row))]] = -np.inf
        return logits
    return on_logits  # fmt: skip


def test_fewer_hypotheses_than_the_beam(eager):
    """A dictionary of two words: the beam finds both, ranked, and stops; a dead end is dropped."""
    words = [[3, 4, 9], [7, 9], [5, 6]]  # the third has no end
    for setting in SETTINGS:
        tokens, scores = search("gpt2", 4, setting, ends=[9], on_logits=only(words))
        assert [sorted(pool) for pool in tokens] == [[[3, 4, 9], [7, 9]]] * 3
        assert all(pool == sorted(pool, reverse=True) for pool in scores)


def test_a_hook_that_bans_everything(eager):
    for words, step in (([[]], 0), ([[5, 6], [5, 7]], 2)):
        with pytest.raises(ValueError, match=f"at least one token must be allowed; in step {step} "):
            search("gpt2", 3, (0.0, False), ends=[9], on_logits=only(words))


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0,), ValueError, "Beam.size must be an integer of at least 1; got 0"),
        ((2.0,), ValueError, "Beam.size"),
        ((2, "1"), TypeError, "Beam.length_penalty must be a number"),
        ((2, float("nan")), ValueError, "Beam.length_penalty must be finite"),
        ((2, 1.0, "always"), ValueError, "True, False or 'never'; got 'always'"),
        ((2, 1.0, 1), ValueError, "True, False or 'never'; got 1"),
    ],
)
def test_wrong_beams(arguments, error, message):
    with pytest.raises(error, match=message):
        Beam(*arguments)
