"""Logits processors against those of transformers of the same meaning, on random logits.

Differences that are meant, tested in tests/snippets/test_sampling.py: of equal logits at the border of top-p
transformers keeps some, by the order of its sort, we keep all; padding forms n-grams and bad words there, never
here; a temperature here also shifts the logits; probabilities of exactly p may fall on either side by rounding.
"""

import numpy as np
import pytest

from bert4x.backend import keras, ops
from bert4x.backend.runtime import jit
from bert4x.snippets import (
    BadWords,
    Chain,
    Context,
    ForcedPrefix,
    MinNewTokens,
    MinP,
    NoRepeatNGram,
    RepetitionPenalty,
    Sample,
    Temperature,
    TopK,
    TopP,
    Typical,
    uniform_numbers,
)

pytestmark = pytest.mark.parity

ROWS, SIZE, SLOTS, LENGTH = 6, 211, 40, 31
PAIRS = [[i, j, 100 + i + j] for i in range(12) for j in range(12)]


@pytest.fixture(scope="module")
def inputs():
    """Logits [N, V] with banned tokens, and what was written: rows without padding, of few different tokens."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(ROWS, SIZE)) * 3).astype("float32")
    logits[:, 5:9] = -1e9
    tokens = rng.integers(0, 12, (ROWS, SLOTS)).astype("int32")
    return logits, tokens


def ours(processor, logits, tokens, padding=0):
    context = Context(tokens, np.int32(LENGTH), np.full(len(tokens), padding, "int32"), np.int32(20), np.int32(11))
    result = ops.convert_to_numpy(jit(processor.__call__)(logits, context, processor.arrays()))
    return np.where(result <= -1e4, -np.inf, result)


def theirs(make, logits, tokens):
    import torch

    scores = torch.tensor(np.where(logits <= -1e4, -np.inf, logits))
    for processor in make if isinstance(make, list) else [make]:
        scores = processor(torch.tensor(tokens[:, :LENGTH], dtype=torch.int64), scores)
    return scores.numpy()


def shifted(logits):
    return logits - logits.max(axis=-1, keepdims=True)


def filter_pairs():
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    yield from ((Temperature(t), TemperatureLogitsWarper(float(t))) for t in (0.2, 1.0, 3.0))
    yield from ((TopK(k), TopKLogitsWarper(k)) for k in (1, 7, 200, SIZE, 5000))
    yield from ((TopP(p), TopPLogitsWarper(p)) for p in (0.01, 0.3, 0.9, 0.99, 1.0))
    yield from ((MinP(p), MinPLogitsWarper(p)) for p in (0.0, 0.01, 0.3, 1.0))
    yield from ((Typical(p), TypicalLogitsWarper(p)) for p in (0.01, 0.2, 0.6, 0.95))


def history_pairs():
    from transformers import (
        MinNewTokensLengthLogitsProcessor,
        NoBadWordsLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    words = [[3], [1, 4], [2, 4], [7, 7, 7], [0, 1, 2, 150], *PAIRS]
    yield BadWords(words), NoBadWordsLogitsProcessor(words, eos_token_id=None)
    yield from ((RepetitionPenalty(p), RepetitionPenaltyLogitsProcessor(p)) for p in (0.5, 1.3, 5.0))
    yield from ((NoRepeatNGram(n), NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 4, 40))
    yield from (
        (MinNewTokens(n, [4, 9]), MinNewTokensLengthLogitsProcessor(20, n, [4, 9])) for n in (0, 11, 12, 100)
    )


@pytest.mark.parametrize("pairs", [filter_pairs, history_pairs])
def test_each_equals_its_counterpart(inputs, pairs, tolerance):
    for mine, other in pairs():
        expected, result = theirs(other, *inputs), ours(mine, *inputs)
        if isinstance(mine, Temperature):
            expected = shifted(expected)
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=tolerance, err_msg=str(mine))


def test_equal_logits_are_treated_alike(inputs):
    """Rounded logits: top-k, min-p and typical as in transformers; top-p keeps these and their equals."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

    logits, tokens = np.round(inputs[0]), inputs[1]
    for mine, other in [(TopK(9), TopKLogitsWarper(9)), (MinP(0.02), MinPLogitsWarper(0.02)),
                        (Typical(0.5), TypicalLogitsWarper(0.5))]:
        np.testing.assert_array_equal(ours(mine, logits, tokens), theirs(other, logits, tokens))
    kept = theirs(TopPLogitsWarper(0.9), logits, tokens)
    least = np.where(kept > -np.inf, kept, np.inf).min(axis=1, keepdims=True)
    np.testing.assert_array_equal(ours(TopP(0.9), logits, tokens), np.where(logits >= least, logits, -np.inf))


def test_padding_does_not_count(inputs, tolerance):
    """Left padding of 6: transformers takes the padding out of the repetition penalty, and so do we."""
    import torch
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    logits, tokens = inputs[0], inputs[1].copy()
    tokens[:, :6] = 180
    other = RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=torch.full((ROWS,), 6))
    expected = theirs(other, logits, tokens)
    np.testing.assert_allclose(ours(RepetitionPenalty(1.5), logits, tokens, 6), expected, atol=tolerance)
    # n-grams: transformers counts padding. Ours is theirs on rows without it.
    result = ours(NoRepeatNGram(1), logits, tokens, 6)
    assert np.isinf(theirs(NoRepeatNGramLogitsProcessor(1), logits, tokens)[:, 180]).all()
    assert np.isfinite(result[:, 180]).all()
    scores = torch.tensor(np.where(logits <= -1e4, -np.inf, logits))
    cut = torch.tensor(tokens[:, 6:LENGTH], dtype=torch.int64)
    np.testing.assert_array_equal(result, NoRepeatNGramLogitsProcessor(1)(cut, scores).numpy())


def test_the_whole_chain_in_the_order_of_generate(inputs, tolerance):
    """Order and values of the processors that `generate` makes from its settings."""
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    settings = GenerationConfig(
        do_sample=True, repetition_penalty=1.3, no_repeat_ngram_size=3, bad_words_ids=[[3], [1, 4]], min_new_tokens=15,
        temperature=1.5, top_k=60, top_p=0.95, min_p=0.001, typical_p=0.9, eos_token_id=2, pad_token_id=0,
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=4, n_layer=1, n_head=1, n_positions=8,
                                       bos_token_id=1, eos_token_id=2))
    settings._eos_token_tensor = torch.tensor([2])
    made = list(model._get_logits_processor(settings, input_ids_seq_length=20))
    chain = Chain.in_order([
        Typical(0.9), MinP(0.001), TopP(0.95), TopK(60), Temperature(1.5), MinNewTokens(15, 2), BadWords([[3], [1, 4]]),
        NoRepeatNGram(3), RepetitionPenalty(1.3),
    ])
    names = [type(p).__name__.removesuffix("LogitsProcessor").removesuffix("LogitsWarper") for p in made]
    assert names == ["RepetitionPenalty", "NoRepeatNGram", "NoBadWords", "MinNewTokensLength", "Temperature", "TopK",
                     "TopP", "MinP", "Typical"]
    expected = shifted(theirs(made, *inputs))
    np.testing.assert_allclose(shifted(ours(chain, *inputs)), expected, rtol=1e-6, atol=tolerance)
    assert (np.isfinite(expected).sum(axis=1) > 3).all()


def test_the_forced_first_token_equals_theirs(inputs):
    import torch
    from transformers import ForcedBOSTokenLogitsProcessor

    logits, tokens = inputs
    context = Context(tokens, np.int32(1), np.zeros(ROWS, "int32"), np.int32(1), np.int32(0))
    mine = ForcedPrefix([7])(logits, keras.tree.map_structure(ops.convert_to_tensor, context))
    expected = ForcedBOSTokenLogitsProcessor(7)(torch.tensor(tokens[:, :1]), torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(ops.convert_to_numpy(mine), np.maximum(expected, -1e9))


def test_draws_have_the_distribution_of_theirs(inputs):
    """Chi-square of our draws under transformers' probabilities after the same filters, at a fixed seed."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits, tokens = inputs[0][:1], inputs[1][:1]
    scores = theirs([TemperatureLogitsWarper(1.5), TopKLogitsWarper(30), TopPLogitsWarper(0.9)], logits, tokens)
    p = torch.softmax(torch.tensor(scores[0], dtype=torch.float64), -1).numpy()
    count = 6000
    sampler = Sample(1.5, top_k=30, top_p=0.9)
    drawn = ops.convert_to_numpy(sampler(np.tile(logits, (count, 1)), uniform_numbers(1, count, 1)[0]))
    found = np.bincount(drawn, minlength=SIZE)
    assert found[p == 0].sum() == 0
    degrees = (p > 0).sum() - 1
    statistic = ((found - count * p)[p > 0] ** 2 / (count * p[p > 0])).sum()
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
