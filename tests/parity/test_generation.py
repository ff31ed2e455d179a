"""`Generator` against transformers' `generate` with the same weights: greedy and beam token for token, sampling by
distribution. Their batches are padded on the left, ours are ragged lists."""

import functools

import numpy as np
import pytest

from bert4x.models import build_transformer_model
from bert4x.snippets import BadWords, MinNewTokens, NoRepeatNGram, RepetitionPenalty, Sample
from bert4x.snippets.generation import Beam, Generator
from tests.parity.test_generative_parity import logits_of, make_theirs
from tests.snippets.oracle import uncompiled, until

pytestmark = pytest.mark.parity

SLOW = pytest.mark.slow
PROMPTS = [[3, 7, 1, 12, 5], [9, 2], [40, 16, 8, 8]]
NEW = 6
# Their penalties and n-grams see the padding token, ours do not; so nobody writes it.
NO_PADDING = BadWords([[0]])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """row -> (their model, our generator), made once."""
    @functools.cache
    def make(row):
        directory = tmp_path_factory.mktemp(row)
        theirs = make_theirs(row, directory)
        return theirs, Generator(build_transformer_model(directory, **logits_of(row)))
    return make  # fmt: skip


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Compiled programs have tests of their own."""
    uncompiled(monkeypatch)


def padded(theirs):
    """Token ids and their mask; on the left for a decoder."""
    import torch

    size = max(map(len, PROMPTS))
    ids, mask = torch.zeros(len(PROMPTS), size, dtype=torch.long), torch.zeros(len(PROMPTS), size, dtype=torch.long)
    for i, prompt in enumerate(PROMPTS):
        place = slice(len(prompt)) if theirs.config.is_encoder_decoder else slice(size - len(prompt), None)
        ids[i, place], mask[i, place] = torch.tensor(prompt), 1
    return ids, mask


def run_theirs(theirs, end, **settings):
    """(token lists, scores of a beam or None), in a flat list of the prompts' results."""
    from transformers import GenerationConfig

    settings["bad_words_ids"] = [[0], *settings.pop("bad_words_ids", [])]
    config = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=end, decoder_start_token_id=0,
        return_dict_in_generate=True, output_scores=True, **settings,
    )
    ids, mask = padded(theirs)
    made = theirs.generate(ids, attention_mask=mask, generation_config=config)
    start = 1 if theirs.config.is_encoder_decoder else ids.shape[1]
    # What follows the end fills the row: padding, or for a beam the end token.
    tokens = [until([t for t in row[start:].tolist() if t], np.ravel(end)) for row in made.sequences]
    return tokens, getattr(made, "sequences_scores", None)


def run_ours(generator, end, processors=(), **options):
    generator.end_ids = end
    return generator.generate(PROMPTS, NEW, processors=[NO_PADDING, *processors], **options)


PROCESSORS = {
    "none": ({}, []),
    "repetition": ({"repetition_penalty": 1.8}, [RepetitionPenalty(1.8)]),
    "n-grams": ({"no_repeat_ngram_size": 2}, [NoRepeatNGram(2)]),
    "bad words": ({"bad_words_ids": [[40], [1, 2], [14, 14]]}, [BadWords([[40], [1, 2], [14, 14]])]),
    "min": ({"min_new_tokens": NEW}, None),
}


def end_of(generator):
    """A token that some continuation ends with, but not all, and none at once."""
    greedy = run_ours(generator, [])
    assert len({token for tokens in greedy for token in tokens}) > 3
    firsts = {tokens[0] for tokens in greedy}
    firsts |= {40}  # bad words below; transformers lets an end token pass that is one
    return next(token for tokens in greedy for token in tokens[1:] if token not in firsts)


@pytest.mark.parametrize("row", ["gpt2", "t5", pytest.param("llama", marks=SLOW)])
def test_greedy(row, pair):
    theirs, generator = pair(row)
    end, results = end_of(generator), []
    names = PROCESSORS if row == "gpt2" else ["none", "min"]
    for name in names:
        settings, processors = PROCESSORS[name]
        want, _ = run_theirs(theirs, end, **settings)
        got = run_ours(generator, [end], [MinNewTokens(NEW, [end])] if processors is None else processors)
        assert got == want, name
        results.append(str(got))
    assert len(set(results)) >= len(names) - 1  # the processors did something
    assert any(len(tokens) < NEW for tokens in run_theirs(theirs, end)[0])


ALL = [(size, penalty, early) for size in (2, 4) for penalty in (0.0, 1.0, 2.0) for early in (True, False, "never")]
SOME = [(4, 0.0, "never"), (2, 1.0, False), (4, 2.0, True)]
BEAMS = [("gpt2", SOME), ("t5", SOME[:1]), *(pytest.param(row, ALL, marks=SLOW) for row in ("gpt2", "t5", "llama"))]


def check_beam(theirs, generator, end, size, penalty, early, settings=None, processors=(), tolerance=1e-5):
    settings = {"num_beams": size, "num_return_sequences": size, "length_penalty": penalty, **(settings or {})}
    want, scores = run_theirs(theirs, end, early_stopping=early, **settings)
    ends = end if isinstance(end, list) else [end]
    got, ours = run_ours(
        generator, ends, processors, strategy=Beam(size, penalty, early), n=size, return_scores=True
    )
    assert sum(got, []) == want
    np.testing.assert_allclose(sum(ours, []), scores.numpy(), rtol=tolerance, atol=20 * tolerance)
    return want


@pytest.mark.parametrize("row, some", BEAMS)
def test_beams(row, some, pair, tolerance):
    """All beams, their order and their scores."""
    theirs, generator = pair(row)
    end, lengths = end_of(generator), set()
    for setting in some:
        lengths |= set(map(len, check_beam(theirs, generator, end, *setting, tolerance=tolerance)))
    assert len(lengths) > 1


@pytest.mark.parametrize("row", ["gpt2", pytest.param("t5", marks=SLOW)])
def test_beams_with_processors_and_two_ends(row, pair, tolerance):
    theirs, generator = pair(row)
    end = end_of(generator)
    for name in ("repetition", "n-grams", "bad words") if row == "gpt2" else ():
        check_beam(theirs, generator, end, 3, 1.0, False, *PROCESSORS[name], tolerance=tolerance)
    both = sorted({end, run_ours(generator, [])[1][0]})
    found = check_beam(theirs, generator, both, 4, 0.0, False, tolerance=tolerance)
    assert {tokens[-1] for tokens in found} & set(both)


def test_samples_have_their_distribution(pair):
    """Chi-square of 4,096 draws of two tokens each, under the exact probabilities by their model and filters."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper

    theirs, generator = pair("gpt2")
    prompt, count, filters = PROMPTS[0], 4096, (TemperatureLogitsWarper(1.5), TopKLogitsWarper(4))

    def following(rows):
        ids = torch.tensor(rows)
        with torch.no_grad():
            logits = theirs(ids).logits[:, -1].double()
        for each in filters:
            logits = each(ids, logits)
        return torch.softmax(logits, -1).numpy()

    first = following([prompt])[0]
    exact = {}
    for token in np.flatnonzero(first):
        second = following([[*prompt, int(token)]])[0]
        exact |= {(int(token), int(other)): first[token] * second[other] for other in np.flatnonzero(second)}
    generator.end_ids = []
    (drawn,) = generator.generate([prompt], 2, strategy=Sample(1.5, top_k=4), n=count, seed=1)
    found = {pair: 0 for pair in exact}
    for tokens in drawn:
        found[tuple(tokens)] += 1  # a KeyError is a pair that is impossible
    statistic = sum((found[pair] - count * p) ** 2 / (count * p) for pair, p in exact.items())
    degrees = len(exact) - 1
    assert degrees == 15 and statistic < degrees + 4 * np.sqrt(2 * degrees)
