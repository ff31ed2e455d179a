"""Logits processors, filters and the seeded draw, against plain NumPy; eager and compiled."""

import subprocess
import sys

import numpy as np
import pytest

from bert4x.backend import keras, ops
from bert4x.backend.runtime import jit
from bert4x.snippets import (
    BadWords,
    Chain,
    Context,
    ForcedPrefix,
    FrequencyPenalty,
    Greedy,
    MinNewTokens,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Sample,
    Temperature,
    TopK,
    TopP,
    Typical,
    draw,
    exhausted,
    filter_top_k,
    filter_top_p,
    filter_typical,
    is_finite,
    uniform_numbers,
)

SIZE = 13  # tokens in the vocabulary
LENGTH = 9  # filled slots of a buffer of 12
PROMPT = 5


def random_logits(rows=4, size=SIZE, seed=0, scale=3.0):
    return (np.random.default_rng(seed).normal(size=(rows, size)) * scale).astype("float32")


def written(rows=4, size=4, seed=0):
    """Left-padded rows of few different tokens, with junk in padding and in the slots to come; and as lists."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, size, (rows, 12)).astype("int32")
    padding = np.arange(rows).astype("int32")
    tokens[:, LENGTH:] = 11
    for row, count in zip(tokens, padding, strict=True):
        row[:count] = 12
    lists = [list(row[count:LENGTH]) for row, count in zip(tokens, padding, strict=True)]
    return Context(tokens, np.int32(LENGTH), padding, np.int32(PROMPT), np.int32(LENGTH - PROMPT)), lists


def as_tensors(structure):
    return keras.tree.map_structure(ops.convert_to_tensor, structure)


COMPILED = {}  # by structure, as a generator keeps them


def run(processor, logits, context=None):
    """What a processor returns, eagerly; compiled, with its numbers as arguments, it must return the same."""
    context = None if context is None else as_tensors(context)
    eager = ops.convert_to_numpy(processor(ops.convert_to_tensor(logits), context))
    if processor.structure not in COMPILED:
        COMPILED[processor.structure] = jit(processor.__call__, xla=True)
    result = COMPILED[processor.structure](logits, context, processor.arrays())
    np.testing.assert_allclose(ops.convert_to_numpy(result), eager, rtol=1e-5, atol=1e-5)
    return eager


def check_kept(result, logits, kept):
    """Kept tokens have their logits and all others -1e9."""
    np.testing.assert_array_equal(result, np.where(kept, logits, np.float32(-1e9)))


def softmax(logits):
    p = np.exp(logits.astype("float64") - logits.max(axis=-1, keepdims=True))
    p[logits <= -1e4] = 0
    return p / p.sum(axis=-1, keepdims=True)


def before(scores, p):
    """Probability of all tokens with a greater score, for each token."""
    return np.array([[q[row > x].sum() for x in row] for row, q in zip(scores, p, strict=True)])


# ---- filters


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_temperature_is_a_power_of_the_probabilities(temperature, tolerance):
    logits = random_logits()
    logits[:, 2] = -1e9
    result = run(Temperature(temperature), logits)
    expected = softmax(logits) ** (1 / temperature)
    np.testing.assert_allclose(softmax(result), expected / expected.sum(axis=1, keepdims=True), atol=tolerance)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6, 1e30])
def test_extreme_temperatures_keep_the_best_token_in_and_banned_ones_out(temperature):
    logits = random_logits() - 40
    logits[:, 2] = -1e9
    result = run(Temperature(temperature), logits)
    assert np.isfinite(result).all() and (result[:, 2] == -1e9).all()
    np.testing.assert_array_equal(result.argmax(axis=1), logits.argmax(axis=1))
    if temperature > 1:
        np.testing.assert_allclose(softmax(result)[:, 3:], 1 / 12, rtol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 5, SIZE, SIZE + 1, 1000])
def test_top_k_keeps_the_k_largest(k):
    logits = random_logits()
    kth = np.sort(logits, axis=1)[:, ::-1][:, [min(k, SIZE) - 1]]
    check_kept(run(TopK(k), logits), logits, logits >= kth)
    assert (logits >= kth).sum() == 4 * min(k, SIZE)


def test_top_k_keeps_what_equals_the_kth():
    logits = np.array([[1, 3, 2, 2, 2, 0], [-0.0, 0.0, -1, -2, -0.0, 5]], "float32")
    check_kept(run(TopK(2), logits), logits, [[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1]])


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_shortest_prefix_that_reaches_p(p):
    logits = random_logits()
    kept = before(logits, softmax(logits)) < p
    check_kept(run(TopP(p), logits), logits, kept)
    assert kept.any(axis=1).all()


def test_top_p_of_one_keeps_all_and_equals_go_together():
    logits = random_logits(scale=8.0)
    check_kept(run(TopP(1.0), logits), logits, logits > -100)
    logits = np.log(np.array([[0.5, 0.1, 0.1, 0.1, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]], "float32"))
    check_kept(run(TopP(0.75), logits), logits, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    check_kept(run(TopP(0.65), logits), logits, [[1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])


def test_the_token_that_reaches_p_exactly_is_the_last():
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], "float32"))
    check_kept(run(TopP(0.5), logits), logits, [[1, 0, 0, 0]])
    check_kept(run(TopP(0.75), logits), logits, [[1, 1, 0, 0]])


@pytest.mark.parametrize("p", [0, 1e-4, 0.05, 0.5, 1])
def test_min_p_compares_with_the_best(p):
    logits = random_logits()
    q = softmax(logits)
    check_kept(run(MinP(p), logits), logits, q >= p * q.max(axis=1, keepdims=True))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("banned", [0, 5])
def test_typical_keeps_what_is_nearest_to_the_entropy(p, banned):
    logits = random_logits()
    logits[:, :banned] = -1e9
    q = softmax(logits)
    logs = np.log(np.maximum(q, 1e-300))
    distance = np.abs(-logs + (q * logs).sum(axis=1, keepdims=True))
    check_kept(run(Typical(p), logits), logits, (before(-distance, q) < p) & (q > 0))


def test_typical_may_drop_the_most_probable_token():
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], "float32"))
    check_kept(run(Typical(0.5), logits), logits, [[0, 1, 1, 1]])


@pytest.mark.parametrize("processor", [Temperature(0.5), TopK(3), TopP(0.5), MinP(0.1), Typical(0.5)])
@pytest.mark.parametrize("low", [-1e9, -np.inf, -1e4])
def test_filters_keep_banned_tokens_out(processor, low):
    logits = random_logits()
    logits[:, ::2] = low
    logits[0] = low
    result = run(processor, logits)
    assert (result[:, ::2] <= -1e4).all() and (result[0] <= -1e4).all()
    assert (result[1:] > -1e4).any(axis=1).all() and not np.isnan(result).any()


def test_filters_over_a_real_vocabulary():
    logits = random_logits(2, 50257, scale=2.5)
    q = softmax(logits)
    order = np.argsort(-logits, axis=1)
    for p in (0.5, 0.95):
        count = (ops.convert_to_numpy(filter_top_p(logits, p)) > -1e4).sum(axis=1)
        sums = np.cumsum(np.take_along_axis(q, order, axis=1), axis=1)
        expected = (sums < p).sum(axis=1) + 1
        assert (np.abs(count - expected) <= 1).all() and (count > 200).all()  # float32 sums may differ by a token
    assert (ops.convert_to_numpy(filter_top_k(logits, 40) > -1e4).sum(axis=1) == 40).all()
    typical = ops.convert_to_numpy(filter_typical(logits, 0.5))
    mass = (q * (typical > -1e4)).sum(axis=1)
    assert (mass > 0.5 - 1e-5).all() and (mass < 0.51).all()


# ---- what was written


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_penalties_count_what_the_row_has_written(prompt, penalty, tolerance):
    logits, (context, lists) = random_logits(), written()
    logits[:, 1] = -1e9
    lists = lists if prompt else [row[PROMPT - count :] for count, row in enumerate(lists)]
    counts = np.array([[row.count(i) for i in range(SIZE)] for row in lists], "float32")
    repetition = np.where(logits > 0, logits / penalty, logits * penalty)
    cases = [
        (RepetitionPenalty(penalty, prompt), np.where(counts > 0, repetition, logits)),
        (PresencePenalty(penalty, prompt), logits - penalty * (counts > 0)),
        (FrequencyPenalty(penalty, prompt), logits - penalty * counts),
    ]
    for processor, expected in cases:
        expected[:, 1] = -1e9
        np.testing.assert_allclose(run(processor, logits, context), expected, atol=tolerance)
    assert counts[:, 11:].sum() == 0 and counts.max() > 1  # padding and empty slots hold 11 and 12


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 12, 20])
def test_no_ngram_twice(size, prompt):
    for seed in range(3):
        logits, (context, lists) = random_logits(), written(size=3, seed=seed)
        kept = np.ones((4, SIZE), bool)
        for count, row in enumerate(lists):
            row = row if prompt else row[PROMPT - count :]
            for start in range(len(row) - size + 1):
                if row[start : start + size - 1] == row[len(row) - size + 1 :]:
                    kept[count, row[start + size - 1]] = False
        check_kept(run(NoRepeatNGram(size, prompt), logits, context), logits, kept)
        assert size > 2 or not kept.all()
        assert size < 12 or kept.all()


def test_ngrams_of_padding_do_not_count():
    tokens = np.array([[7, 7, 7, 1, 0, 0]], "int32")
    context = Context(tokens, np.int32(4), np.array([3], "int32"), np.int32(4), np.int32(0))
    logits = random_logits(1)
    check_kept(run(NoRepeatNGram(1), logits, context), logits, np.arange(SIZE)[None] != 1)
    check_kept(run(NoRepeatNGram(2), logits, context), logits, True)


def test_bad_words_are_stopped_at_their_last_token():
    context, lists = written(size=3)
    words = [[4], [0, 5], [1, 5], [2, 2, 6], [0, 1, 2, 7], [12, *lists[2], 8], [lists[3][-1], 4]]
    logits = random_logits()
    kept = np.ones((4, SIZE), bool)
    for row, ids in enumerate(lists):
        for word in words:
            if ids[len(ids) - len(word) + 1 :] == word[:-1] and len(ids) >= len(word) - 1:
                kept[row, word[-1]] = False
    assert not kept[:, 4].any() and not kept[:, 5].all() and kept[:, 8].all()
    check_kept(run(BadWords(words), logits, context), logits, kept)


def test_the_end_is_out_until_enough_was_written():
    logits, (context, _) = random_logits(), written()
    for count, banned in [(0, []), (4, []), (5, [2, 9]), (50, [2, 9])]:
        check_kept(run(MinNewTokens(count, (2, 9)), logits, context), logits, ~np.isin(np.arange(SIZE), banned)[None])
    assert MinNewTokens(3, 2).end_ids == (2,)


def test_the_prefix_is_forced_even_if_banned():
    logits, (context, _) = random_logits(), written()
    logits[:, 7] = -1e9
    for step, token in enumerate([6, 7]):
        expected = np.where(np.arange(SIZE) == token, 0.0, -1e9) + np.zeros((4, 1))
        result = run(ForcedPrefix([6, 7]), logits, context._replace(step=np.int32(step)))
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(run(ForcedPrefix([6, 7]), logits, context._replace(step=np.int32(2))), logits)


# ---- chains and compilation

ALL = [
    ForcedPrefix([1, 2]), Typical(0.9), MinP(0.01), TopP(0.8), TopK(7), Temperature(0.7), MinNewTokens(9, 2),
    BadWords([[1, 2], [5]]), NoRepeatNGram(3), FrequencyPenalty(0.1), PresencePenalty(0.2), RepetitionPenalty(1.2),
]
OTHERS = [
    ForcedPrefix([2, 1]), Typical(0.5), MinP(0.05), TopP(0.4), TopK(3), Temperature(1.7), MinNewTokens(1, 3),
    BadWords([[3, 4], [6]]), NoRepeatNGram(3), FrequencyPenalty(1.1), PresencePenalty(1.2), RepetitionPenalty(2.2),
]


def test_a_chain_applies_its_processors_in_the_order_of_transformers():
    chain = Chain.in_order(ALL)
    assert [type(p).__name__ for p in chain.processors] == [
        "RepetitionPenalty", "FrequencyPenalty", "PresencePenalty", "NoRepeatNGram", "BadWords", "MinNewTokens",
        "ForcedPrefix", "Temperature", "TopK", "TopP", "MinP", "Typical",
    ]
    logits, (context, _) = random_logits(), written()
    expected = ops.convert_to_tensor(logits)
    for processor in chain.processors:
        expected = processor(expected, as_tensors(context))
    np.testing.assert_array_equal(run(chain, logits, context), ops.convert_to_numpy(expected))
    assert Chain((TopK(1), TopP(0.5))).processors == (TopK(1), TopP(0.5))
    np.testing.assert_array_equal(run(Chain(), logits), logits)


def test_numbers_and_ids_change_without_a_new_trace():
    chain, other = Chain.in_order(ALL), Chain.in_order(OTHERS)
    assert chain.structure == other.structure and hash(chain.structure) == hash(other.structure)
    traces = []

    def step(logits, context, arrays):
        traces.append(1)
        return chain(logits, context, arrays)

    compiled, logits, (context, _) = jit(step, xla=True), random_logits(), written()
    compiled(logits, context, chain.arrays())
    count = len(traces)
    for wanted in (other, chain):
        result = ops.convert_to_numpy(compiled(logits, context, wanted.arrays()))
        expected = ops.convert_to_numpy(wanted(logits, as_tensors(context)))
        np.testing.assert_allclose(result, expected, atol=1e-5)
    if keras.backend.backend() != "torch":
        assert len(traces) == count


@pytest.mark.parametrize("one, two", [
    (TopK(2), TopP(0.2)), (MinP(0.1), TopP(0.1)), (NoRepeatNGram(2), NoRepeatNGram(3)),
    (BadWords([[1]]), BadWords([[1, 2]])), (RepetitionPenalty(1.1), RepetitionPenalty(1.1, prompt=False)),
    (Sample(top_k=2), Sample(top_p=0.2)), (Greedy(), Sample()),
    (Chain((TopK(2), TopP(0.2))), Chain((TopP(0.2), TopK(2)))),
])
def test_what_compiles_differently_has_another_structure(one, two):
    assert one.structure != two.structure and len({one.structure, two.structure}) == 2


def test_they_run_inside_a_compiled_loop():
    sampler = Sample(temperature=0.8, top_k=6, top_p=0.9)
    chain = Chain((NoRepeatNGram(2), RepetitionPenalty(1.3)))
    table = random_logits(SIZE, SIZE)

    def generate(tokens, padding, uniforms, arrays):
        def step(i, tokens):
            context = Context(tokens, i, padding, 3, i - 3)
            logits = ops.take(ops.convert_to_tensor(table), ops.take(tokens, i - 1, axis=1), axis=0)
            new = sampler(chain(logits, context, arrays[0]), ops.take(uniforms, i - 3, axis=0), arrays[1])
            return ops.where(ops.expand_dims(ops.arange(12), 0) == i, ops.expand_dims(new, 1), tokens)

        return ops.fori_loop(3, 12, step, tokens)

    tokens = np.zeros((4, 12), "int32")
    tokens[:, :3] = [[1, 2, 3], [0, 4, 5], [0, 0, 6], [0, 1, 3]]
    inputs = tokens, np.array([0, 1, 2, 1], "int32"), uniform_numbers(1, 4, 9), (chain.arrays(), sampler.arrays())
    compiled = ops.convert_to_numpy(jit(generate, xla=True)(*inputs))
    np.testing.assert_array_equal(compiled, ops.convert_to_numpy(generate(*as_tensors(inputs))))
    for row, padding in zip(compiled, inputs[1], strict=True):
        pairs = list(zip(row[padding:], row[padding + 1 :], strict=False))
        assert len(set(pairs)) == len(pairs)


# ---- samplers


def test_greedy_takes_the_first_of_the_best():
    logits = np.array([[0, 3, 3, 1], [5, -1, 0, 5]], "float32")
    tokens = Greedy()(ops.convert_to_tensor(logits))
    assert keras.backend.standardize_dtype(tokens.dtype) == "int32"
    np.testing.assert_array_equal(ops.convert_to_numpy(tokens), [1, 0])


def drawn(logits, uniforms):
    return ops.convert_to_numpy(draw(logits, np.asarray(uniforms, "float32")))


def test_the_draw_inverts_the_cumulative_distribution():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], "float32")) + 5
    logits = np.insert(logits, [0, 2, 4], -1e9)  # ids 1, 2, 4, 5 are allowed
    uniforms = [0, 0.05, 0.099, 0.101, 0.3, 0.499, 0.501, 0.69, 0.701, 0.9, 1 - 2**-24]
    expected = [1, 1, 1, 2, 2, 2, 4, 4, 5, 5, 5]
    tokens = drawn(np.tile(logits, (len(uniforms), 1)), uniforms)
    np.testing.assert_array_equal(tokens, expected)
    assert tokens.dtype == np.int32


def test_no_token_of_probability_zero_is_drawn():
    uniforms = np.repeat(np.array([0, 2**-24, 0.5, 1 - 2**-23, 1 - 2**-24], "float32"), 40)
    logits = random_logits(len(uniforms), 1003, scale=4.0)
    allowed = np.random.default_rng(1).random(logits.shape) < 0.02
    allowed[:, 500] = True
    tokens = drawn(np.where(allowed, logits, -1e9), uniforms)
    assert allowed[np.arange(len(tokens)), tokens].all()
    np.testing.assert_array_equal(tokens[:40], allowed[:40].argmax(axis=1))
    assert (tokens[-40:] > 600).all()
    np.testing.assert_array_equal(drawn(np.full((2, 7), -1e9, "float32"), [0.3, 0.9]), [0, 0])


def chi_square(tokens, p):
    expected = p * len(tokens)
    return ((np.bincount(tokens, minlength=len(p)) - expected)[p > 0] ** 2 / expected[p > 0]).sum()


@pytest.mark.parametrize("sampler, filters", [
    (Sample(), []),
    (Sample(temperature=1.7), []),
    (Sample(0.8, top_k=6, top_p=0.9), [TopK(6), TopP(0.9)]),
    (Sample(typical_p=0.7, min_p=0.02), [MinP(0.02), Typical(0.7)]),
])
def test_draws_have_the_distribution(sampler, filters):
    logits = random_logits(1, scale=1.0)
    expected = logits / sampler.temperature
    for processor in filters:
        expected = ops.convert_to_numpy(processor(expected))
    p = softmax(expected)[0]
    uniforms = uniform_numbers(3, 8000, 1)[0]
    tokens = ops.convert_to_numpy(sampler(np.tile(logits, (8000, 1)), uniforms))
    assert not np.isin(tokens, np.flatnonzero(p == 0)).any()
    # 99.9% of chi-square with 12 degrees of freedom; the seed is fixed.
    assert chi_square(tokens, p) < 32.9
    assert chi_square(tokens, np.roll(p, 1) + 1e-9) > 300


def test_a_row_draws_the_same_in_any_batch():
    logits, uniforms = random_logits(16, 300), uniform_numbers(5, 16, 1)[0]
    sampler = Sample(0.9, top_p=0.95)
    together = ops.convert_to_numpy(sampler(logits, uniforms))
    single = [ops.convert_to_numpy(sampler(logits[i : i + 1], uniforms[i : i + 1]))[0] for i in range(16)]
    np.testing.assert_array_equal(together, single)
    compiled = jit(lambda *inputs: sampler(*inputs), xla=True)(logits, uniforms, sampler.arrays())
    np.testing.assert_array_equal(ops.convert_to_numpy(compiled), together)
    assert len(set(together)) > 8


def test_numbers_belong_to_a_seed_and_a_row():
    numbers = uniform_numbers(7, 3, 5)
    assert numbers.shape == (5, 3) and numbers.dtype == np.float32 and (0 <= numbers).all() and (numbers < 1).all()
    np.testing.assert_array_equal(uniform_numbers(7, 2, 3), numbers[:3, :2])
    assert len(np.unique(numbers)) == 15 and not (uniform_numbers(8, 3, 5) == numbers).any()
    np.random.seed(1)
    free = uniform_numbers(None, 3, 5)
    assert not (uniform_numbers(None, 3, 5) == free).any()
    np.random.seed(1)
    np.testing.assert_array_equal(uniform_numbers(None, 3, 5), free)


# ---- checks


def test_rows_without_a_token_or_with_nan_are_found():
    logits = random_logits(5)
    logits[0] = -1e9
    logits[1, 1:] = -np.inf
    logits[2, 3] = np.nan
    logits[3, 3] = np.inf
    logits[4] = -np.inf
    logits = ops.convert_to_tensor(logits)
    np.testing.assert_array_equal(ops.convert_to_numpy(exhausted(logits)), [True, False, False, False, True])
    np.testing.assert_array_equal(ops.convert_to_numpy(is_finite(logits)), [True, True, False, False, True])
    assert ops.convert_to_numpy(Sample(top_p=0.5)(logits, np.full(5, 0.5, "float32"))).max() < SIZE


@pytest.mark.parametrize("make, message", [
    (lambda: Temperature(0), "above 0; got 0.*Greedy"), (lambda: Temperature(-1.0), "above 0; got -1"),
    (lambda: Temperature(float("nan")), "got nan"), (lambda: Temperature(float("inf")), "got inf"),
    (lambda: TopP(0), "above 0 and at most 1; got 0"), (lambda: TopP(1.1), "at most 1; got 1.1"),
    (lambda: Typical(0.0), "above 0"), (lambda: MinP(-0.1), "at least 0 and at most 1; got -0.1"),
    (lambda: TopK(0), "k must be at least 1; got 0"), (lambda: NoRepeatNGram(0), "size must be at least 1; got 0"),
    (lambda: RepetitionPenalty(0.0), "above 0"), (lambda: PresencePenalty(float("nan")), "finite"),
    (lambda: BadWords([]), "at least one word"), (lambda: BadWords([[1], []]), "one token id or more"),
    (lambda: BadWords([[-1]]), "at least 0"), (lambda: ForcedPrefix([]), "one token id or more"),
    (lambda: MinNewTokens(-1, 2), "at least 0; got -1"), (lambda: MinNewTokens(1, ()), "end_ids must be one"),
    (lambda: Sample(temperature=0), "Greedy"), (lambda: Sample(top_k=0), "at least 1"),
    (lambda: Sample(top_p=2), "most 1"), (lambda: Sample(1, min_p=-1), "at least 0"),
    (lambda: uniform_numbers(0, 0, 1), "rows must be at least 1"), (lambda: uniform_numbers(-1, 1, 1), "seed"),
])
def test_wrong_values_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [
    lambda: Temperature("hot"), lambda: Temperature(True), lambda: TopK(2.5), lambda: TopK(True),
    lambda: BadWords([["a"]]), lambda: Chain((Greedy(),)), lambda: Chain.in_order([TopK]),
    lambda: NoRepeatNGram(2)(random_logits()),
])
def test_wrong_types_are_errors(make):
    with pytest.raises(TypeError, match="must be|must hold|made of|pass a Context"):
        make()


@pytest.mark.parametrize("processor", [
    BadWords([[1, 2], [1, SIZE]]), MinNewTokens(1, SIZE), ForcedPrefix([SIZE]), Chain((TopK(2), BadWords([[SIZE]]))),
])
def test_token_ids_must_be_below_the_number_of_logits(processor):
    message = f"below the number of logits; got {SIZE} and {SIZE}"
    with pytest.raises(ValueError, match=message):
        processor.check(SIZE)
    with pytest.raises(ValueError, match=message):
        processor(random_logits(), as_tensors(written()[0]))
    processor.check(SIZE + 1)


def test_tokens_that_have_no_logit_do_not_matter():
    context, _ = written(size=30, seed=4)
    logits = random_logits()
    result = run(Chain((RepetitionPenalty(2.0), NoRepeatNGram(1))), logits, context)
    for row, ids, count in zip(result, context.tokens, context.padding, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row == -1e9), [i for i in range(SIZE) if i in ids[count:LENGTH]])


def test_they_cannot_be_changed():
    with pytest.raises(AttributeError):
        Temperature(1.0).temperature = 2.0
    assert hash(BadWords([[1, 2]])) == hash(BadWords(((1, 2),))) and TopP(0.5) == TopP(0.5)


def test_the_snippets_do_not_import_keras_for_them():
    code = "import sys, bert4x.snippets; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
