"""`Generator` against the naive loop that runs the whole sequence for every token; what it takes and yields."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from bert4x.backend import keras, ops, runtime
from bert4x.snippets import BadWords, RepetitionPenalty, Sample
from bert4x.snippets.filters import uniform_numbers
from bert4x.snippets.generation import Generator
from bert4x.snippets.loops import Loop
from tests.snippets.oracle import ALLOWED, NEW, PROMPTS, ROWS, Case, one_by_one, uncompiled, until

BAN = [BadWords([[0]])]
# XLA takes seconds per model, so TensorFlow compiles one of each kind and runs the others eagerly.
COMPILED = ("gpt2", "llama", "bert unilm, condition", "t5.1.1")


class Letters:
    """A tokenizer whose token i is the i-th letter; token 16 is half a character, which no text ends in."""

    def decode(self, ids):
        text = "".join(chr(ord("a") + i) for i in ids)
        return text.replace("qq", "Q").replace("q", "\N{REPLACEMENT CHARACTER}")


@functools.cache
def case_of(row):
    return Case.of(row)


@functools.cache
def generator_of(row):
    return Generator(case_of(row).builder, tokenizer=Letters())


@functools.cache
def greedy_of(row):
    """(tokens, scores) by the naive loop."""
    tokens, scores = one_by_one(case_of(row), NEW)
    return [t for (t,) in tokens], [s for (s,) in scores]


def generate(row, new=NEW, *, ends=(), processors=BAN, **options):
    """`generate` on the prompts of a row, always scored, since that is another program."""
    generator, case = generator_of(row), case_of(row)
    generator.end_ids = list(ends)
    prompts = options.pop("prompts", case.prompts)
    return generator.generate(
        prompts, new, processors=processors, return_scores=True, **{**case.arguments, **options}
    )


# ---- the naive loop is the oracle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_greedy_search_equals_the_full_recompute(row, tolerance, monkeypatch):
    if row not in COMPILED:
        uncompiled(monkeypatch)
    want, scores = greedy_of(row)
    assert len({token for tokens in want for token in tokens}) >= 4
    got, got_scores = generate(row)
    assert got == want
    np.testing.assert_allclose(got_scores, scores, atol=10 * tolerance)
    end = next(token for tokens in want for token in tokens[1:] if token != tokens[0])
    cut = [until(tokens, [end]) for tokens in want]
    assert generate(row, ends=[end])[0] == cut and any(1 < len(tokens) < NEW for tokens in cut)
    assert generate(row, 3)[0] == [tokens[:3] for tokens in want]


@pytest.mark.parametrize("row", ["gpt2", "t5.1.1"])
def test_sampling_equals_the_full_recompute_with_the_same_numbers(row, tolerance, monkeypatch):
    if row != "gpt2":
        uncompiled(monkeypatch)
    end = 8
    want, scores = one_by_one(case_of(row), NEW, [end], n=2, uniforms=uniform_numbers(5, 8, NEW))
    got, got_scores = generate(row, strategy=Sample(), n=2, seed=5, ends=[end])
    assert got == want and len({tuple(tokens) for pair in got for tokens in pair}) > 4
    np.testing.assert_allclose(sum(got_scores, []), sum(scores, []), atol=10 * tolerance)


# ---- batches and shapes --------------------------------------------------------------------------------------------


def test_batches_order_and_duplicates():
    want = dict(zip(map(tuple, PROMPTS), greedy_of("gpt2")[0], strict=True))
    assert [generate("gpt2", prompts=[prompt])[0][0] for prompt in PROMPTS] == list(want.values())
    turned = [PROMPTS[2], PROMPTS[1], PROMPTS[1], PROMPTS[0]]
    assert generate("gpt2", prompts=turned)[0] == [want[tuple(prompt)] for prompt in turned]


def test_results_do_not_depend_on_buckets():
    """A prompt of 20 tokens beside the others, and room for 20 tokens: other shapes, the same tokens."""
    got, _ = generate("llama", 20, prompts=[*PROMPTS, list(range(1, 17)) + [5, 4, 3, 2]])
    assert [tokens[:NEW] for tokens in got[:3]] == greedy_of("llama")[0]
    assert all(len(tokens) == 20 for tokens in got)


def test_seeds():
    runs = [generate("gpt2", strategy=Sample(), n=2, seed=seed)[0] for seed in (1, 1, 2, None)]
    assert runs[0] == runs[1] != runs[2]
    keras.utils.set_random_seed(0)
    assert generate("gpt2", strategy=Sample(), n=2)[0] == runs[3]  # each test starts from seed 0
    assert runs[0][0][0] != runs[0][0][1]


@pytest.fixture
def traces(monkeypatch):
    """A list that grows when a loop is traced; with torch, when it runs."""
    found, begin = [], Loop.begin
    monkeypatch.setattr(Loop, "begin", lambda self, feeds: found.append(1) or begin(self, feeds))
    return found


def test_numbers_do_not_compile_anew(traces):
    tried = [(1.0, 0.9, 1.5, 4), (0.5, 0.7, 1.1, 5), (2.0, 0.3, 3.0, 7)]
    got = [
        generate("gpt2", new, strategy=Sample(t, top_p=p), processors=[RepetitionPenalty(penalty)], seed=i, ends=[i])[0]
        for i, (t, p, penalty, new) in enumerate(tried)
    ]
    assert len(traces) == (3 if runtime.backend() == "torch" else 1)
    cold = generate("gpt2", strategy=Sample(1e-6, top_p=1.0), processors=[RepetitionPenalty(1.0)], seed=0)[0]
    assert len({str(x) for x in got}) == 3 and len(generator_of("gpt2")._compiled) < 12
    uncut = generate("gpt2", strategy=Sample(1e-6, top_p=1.0), processors=[RepetitionPenalty(1.0)], seed=9)[0]
    assert cold == uncut


def resident():
    """Memory of this process in MiB."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_calls_neither_trace_nor_grow(count, traces):
    def call(i):
        prompts = [PROMPTS[i % 3], PROMPTS[(i + 1) % 3], PROMPTS[2]]
        generate("gpt2", 2 + i % 3, prompts=prompts, strategy=Sample(1 + i / count), seed=i, n=2, ends=[i % 17])

    for i in range(8):
        call(i)
    before, seen = resident(), len(traces)
    for i in range(count):
        call(i)
    assert len(traces) - seen == (count if runtime.backend() == "torch" else 0)
    assert resident() - before < 8


def test_other_weights_are_seen(tolerance):
    case, weight = case_of("gpt2"), case_of("gpt2").builder.model.trainable_weights[0]
    before = runtime.to_numpy(weight)
    try:
        weight.assign(before[::-1])
        want, _ = one_by_one(case, NEW)
        assert generate("gpt2")[0] == [tokens for (tokens,) in want] != greedy_of("gpt2")[0]
    finally:
        weight.assign(before)


def test_half_precision(monkeypatch):
    """The first token is that of the full graph in bfloat16."""
    uncompiled(monkeypatch)
    case = Case.of("llama", dtype="mixed_bfloat16")
    got = Generator(case.builder).generate(PROMPTS, 4, processors=BAN)
    logits, allowed = case.logits([(i, []) for i in range(3)])
    assert [tokens[0] for tokens in got] == np.where(allowed, logits, -np.inf).argmax(-1).tolist()
    assert all(len(tokens) == 4 for tokens in got)


# ---- streams, stop strings, hooks ----------------------------------------------------------------------------------


def test_streams_equal_generate():
    generator, (want, _) = generator_of("gpt2"), greedy_of("gpt2")
    generator.end_ids = []
    assert [list(generator.stream(prompt, NEW, processors=BAN)) for prompt in PROMPTS] == want
    generator.end_ids = [want[0][2]]
    assert list(generator.stream(PROMPTS[0], NEW, processors=BAN)) == until(want[0], [want[0][2]])
    generator.end_ids = []
    stream = generator.stream(PROMPTS[0], NEW, processors=BAN)
    assert [next(stream), next(stream)] == want[0][:2]  # as they come; the rest is never computed
    assert list(generator.stream(PROMPTS[0], 0)) == []


def test_streams_of_text():
    generator, want = generator_of("gpt2"), greedy_of("gpt2")[0][0]
    pieces = list(generator.stream(PROMPTS[0], NEW, processors=BAN, text=True))
    assert "".join(pieces) == Letters().decode(want) and len(pieces) == NEW + 1
    halves = list(generator._pieces(iter([0, 16, 16, 1])))
    assert halves == ["a", "Q", "b", ""]  # half a character waits for the other half
    assert "".join(generator._pieces(iter([0, 16]))) == Letters().decode([0, 16])


def test_samples_stream_too():
    generator = generator_of("gpt2")
    generator.end_ids = []
    want = generate("gpt2", strategy=Sample(), n=2, seed=5)[0][0][0]  # the first row, with or without others
    assert list(generator.stream(PROMPTS[0], NEW, strategy=Sample(), seed=5, processors=BAN)) == want


def test_stop_strings():
    want = greedy_of("gpt2")[0]
    word = Letters().decode(want[0][2:4])
    texts = [Letters().decode(tokens) for tokens in generate("gpt2", stop_strings=[word, "never"])[0]]
    for text, tokens in zip(texts, want, strict=True):
        whole = Letters().decode(tokens)
        assert text == (whole[: whole.index(word) + len(word)] if word in whole else whole)
    assert len(texts[0]) < NEW and max(map(len, texts)) == NEW
    generator = generator_of("gpt2")
    streamed = "".join(generator.stream(PROMPTS[0], NEW, text=True, stop_strings=word, processors=BAN))
    assert streamed == texts[0]


def constraint(allowed, seen=None):
    """A hook that forbids what is not allowed after each prompt."""
    def on_logits(logits, rows):
        if seen is not None:
            seen.extend(rows)
        return np.where(allowed[[number for number, _ in rows]], logits, -np.inf)
    return on_logits  # fmt: skip


def test_hooks_constrain_by_prompt(tolerance):
    allowed, want, end = ALLOWED.copy(), greedy_of("gpt2")[0], 1
    for i, tokens in enumerate(want):
        allowed[i, [tokens[1], tokens[3]]] = False
    want, scores = one_by_one(dataclasses.replace(case_of("gpt2"), allowed=allowed), NEW, [end])
    seen = []
    got, got_scores = generate("gpt2", on_logits=constraint(allowed, seen), ends=[end])
    assert got == [tokens for (tokens,) in want] != greedy_of("gpt2")[0]
    np.testing.assert_allclose(got_scores, [s for (s,) in scores], atol=10 * tolerance)
    # It saw each row that went on, with what was written.
    assert seen == [(i, t[:step]) for step in range(NEW) for i, t in enumerate(got) if step < len(t)]


def test_hooks_equal_processors():
    token = greedy_of("gpt2")[0][0][0]
    want = generate("gpt2", processors=[BadWords([[token]])])[0]
    unused = next(i for i in range(17) if all(i not in tokens for tokens in want))
    allowed = np.tile(np.arange(17) != token, (3, 1))
    assert generate("gpt2", processors=[BadWords([[unused]])], on_logits=constraint(allowed))[0] == want


# ---- other sources -------------------------------------------------------------------------------------------------


class Sum(keras.layers.Layer):
    """Logits of the sum of the vectors of all tokens so far, whose cache holds them: [B, 1, D], [B, S, 1, D]."""

    def call(self, x, cache, start, padding):
        cache = ops.slice_update(cache, (0, start, 0, 0), x[:, :, None])
        slots = ops.arange(cache.shape[1] or ops.shape(cache)[1])[None]
        filled = ops.logical_and(slots >= padding[:, None], slots < start + ops.shape(x)[1])
        return ops.sum(cache[:, :, 0] * ops.cast(filled, x.dtype)[:, :, None], axis=1, keepdims=True), cache

    def compute_output_spec(self, x, cache, start, padding):
        return keras.KerasTensor((x.shape[0], 1, x.shape[2])), keras.KerasTensor(cache.shape)


class Sums:
    """A source by hand: any object with `build_step`."""

    def build_step(self, max_length=None, *, last_only=False):
        token = keras.Input((None,), dtype="int32", name="token")
        padding = keras.Input((), dtype="int32", name="padding")
        start = keras.Input(batch_shape=(), dtype="int32", name="start")
        cache = keras.Input((max_length, 1, 4), name="key_0")
        self.embedding, self.dense = keras.layers.Embedding(5, 4), keras.layers.Dense(5)
        x, new = Sum()(self.embedding(token), cache, start, padding)
        inputs = {"token": token, "padding": padding, "start": start, "key_0": cache}
        return keras.Model(inputs, {"logits": self.dense(x), "key_0": new})


def test_any_object_with_build_step(monkeypatch):
    uncompiled(monkeypatch)
    source, random = Sums(), np.random.default_rng(0)
    generator = Generator(source)
    table, kernel = random.normal(size=(5, 4)), random.normal(size=(4, 5))
    source.embedding.embeddings.assign(table), source.dense.kernel.assign(kernel)
    prompts = [[1, 2], [4, 4, 3], [0]]
    rows = [list(prompt) for prompt in prompts]
    for _ in range(6):
        rows = [[*row, int((table[row].sum(0) @ kernel).argmax())] for row in rows]
    assert generator.generate(prompts, 6) == [row[len(p) :] for row, p in zip(rows, prompts, strict=True)]
    assert len({token for row in rows for token in row}) > 2
