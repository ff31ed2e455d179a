"""AutoRegressiveDecoder on made-up distributions, against exhaustive search and counting; no Keras needed."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from bert4x.snippets import AutoRegressiveDecoder

END = 0
SIZE = 4


def distribution(prefix, size=SIZE):
    """Probabilities [V] after a prefix: made up, but a function of the whole prefix."""
    logits = np.random.default_rng([7, *map(int, prefix)]).normal(size=size) * 1.5
    return np.exp(logits) / np.exp(logits).sum()


class Fake(AutoRegressiveDecoder):
    """Knows what follows a prefix; keeps what `predict` was asked."""

    def __init__(self, *args, follows=distribution, **options):
        super().__init__(*args, **options)
        self.follows, self.asked = follows, []

    @AutoRegressiveDecoder.wraps(default_rtype="probas")
    def predict(self, inputs, output_ids, states):
        self.asked.append(([x.copy() for x in inputs], output_ids.copy()))
        return np.array([self.follows(ids) for ids in output_ids])


class FakeLogits(Fake):
    """The same distributions as logits with a constant added."""

    @AutoRegressiveDecoder.wraps(default_rtype="logits")
    def predict(self, inputs, output_ids, states):
        return np.log([self.follows(ids) for ids in output_ids]) + 3


def outputs_of(maxlen, minlen=1, min_ends=1, size=SIZE):
    """All outputs: those that end, and those of the greatest length that do not."""
    for length in range(1, maxlen + 1):
        for ids in itertools.product(range(size), repeat=length):
            ends = ids.count(END)
            ended = ends == min_ends and ids[-1] == END
            if (ended and length >= minlen) or (length == maxlen and ends < min_ends):
                yield ids


def score(ids, penalty=0.0, follows=distribution, temperature=1.0):
    logs = 0.0
    for place, token in enumerate(ids):
        p = follows(ids[:place]) ** (1 / temperature)
        logs += np.log(p[token] / p.sum())
    return logs / len(ids) ** penalty


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("minlen, min_ends", [(1, 1), (3, 1), (1, 2), (4, 2)])
def test_a_beam_of_all_outputs_is_exhaustive_search(penalty, minlen, min_ends):
    for seed in range(5):
        def follows(prefix, seed=seed):
            return distribution([seed, *prefix])

        decoder = Fake(None, END, maxlen=4, minlen=minlen, follows=follows)
        found = decoder.beam_search([], SIZE**4, min_ends=min_ends, length_penalty=penalty)
        best = max(outputs_of(4, minlen, min_ends), key=lambda ids: score(ids, penalty, follows))
        assert tuple(found) == best
        assert found.dtype == np.int32


@pytest.mark.parametrize("cls", [Fake, FakeLogits])
def test_a_beam_of_one_is_the_argmax_loop(cls):
    for seed in range(20):
        def follows(prefix, seed=seed):
            return distribution([seed, *prefix], size=9)

        ids = []
        while len(ids) < 8 and END not in ids:
            p = follows(ids)
            ids.append(int(p[1:].argmax()) + 1 if len(ids) + 1 < 3 else int(p.argmax()))
        assert cls(None, END, maxlen=8, minlen=3, follows=follows).beam_search([], 1).tolist() == ids


def test_beam_equals_a_literal_writing_of_it():
    """Small beams, against lists of (score, ids)."""
    for seed in range(30):
        def follows(prefix, seed=seed):
            return distribution([seed, *prefix], size=5)

        running, pool = [(0.0, ())], []
        for _ in range(5):
            found = [(s + np.log(p), (*ids, i)) for s, ids in running for i, p in enumerate(follows(ids))]
            found = sorted(found, key=lambda pair: -pair[0])[:3]
            pool += [pair for pair in found if pair[1][-1] == END]
            running = [pair for pair in found if pair[1][-1] != END]
        best = max(pool + running)
        assert tuple(Fake(None, END, maxlen=5, follows=follows).beam_search([], 3)) == best[1]


def exposure(prefix):
    """The example of specification training 4.1: 0 ends, a 1, c 2; then b 3, d 4."""
    first, then = {1: 0.6, 2: 0.4}, {1: {3: 0.55, 4: 0.45}, 2: {3: 0.1, 4: 0.9}}
    table = first if len(prefix) == 0 else then[int(prefix[0])] if len(prefix) == 1 else {0: 1.0}
    return np.array([table.get(i, 0.0) for i in range(5)])


def test_a_larger_beam_finds_what_greedy_search_misses():
    decoder = Fake(None, END, maxlen=3, follows=exposure)
    assert decoder.beam_search([], 1).tolist() == [1, 3, 0]
    assert decoder.beam_search([], 2).tolist() == [2, 4, 0]


def early_end(prefix):
    """Ending at once is second best in the first step (0.4), and every longer output is worse than that."""
    return np.array([0.4, 0.6, 0.0]) if len(prefix) == 0 else np.array([0.5, 0.2, 0.3])


def test_finished_outputs_are_kept():
    decoder = Fake(None, END, maxlen=6, follows=early_end)
    assert decoder.beam_search([], 2).tolist() == [0]
    assert len(decoder.asked) == 2  # no running output can beat 0.4 after the second step
    assert decoder.beam_search([], 2, legacy=True).tolist() == [1, 0]


def test_ties_go_to_the_lower_token():
    decoder = Fake(None, END, maxlen=2, minlen=2, follows=lambda prefix: np.full(6, 1 / 6))
    assert decoder.beam_search([], 3).tolist() == [1, 0]
    assert decoder.beam_search([], 1).tolist() == [1, 0]


def test_a_beam_larger_than_the_vocabulary():
    assert tuple(Fake(None, END, maxlen=1).beam_search([], 100)) == max(outputs_of(1), key=score)


def test_the_end_token_is_forbidden_before_minlen():
    likes_to_end = np.array([0.97, 0.01, 0.01, 0.01])
    for minlen in (1, 3, 5):
        decoder = Fake(None, END, 5, minlen, follows=lambda prefix: likes_to_end)
        assert len(decoder.beam_search([], 2)) == minlen
        samples = decoder.random_sample([], 50, seed=0)
        assert min(map(len, samples)) == minlen
        assert all(END not in ids[:-1] for ids in samples)


def test_several_ends():
    decoder = Fake(None, END, maxlen=9)
    for ids in [decoder.beam_search([], 3, min_ends=2), *decoder.random_sample([], 20, min_ends=2, seed=1)]:
        ends = np.flatnonzero(ids == END)
        assert len(ends) <= 2 and (len(ends) < 2 or ends[-1] == len(ids) - 1)
        assert len(ends) == 2 or len(ids) == 9


def test_the_start_token_leads_and_does_not_count():
    decoder = Fake(END, END, maxlen=3, minlen=2)
    for ids in [decoder.beam_search([], 2), *decoder.random_sample([], 20, seed=0)]:
        assert ids[0] == END and 3 <= len(ids) <= 4
    assert decoder.asked[0][1].tolist() == [[END]]


def test_inputs_are_repeated_with_their_rows():
    decoder = Fake(None, END, maxlen=4, minlen=4)
    decoder.beam_search([[5, 6, 7], np.ones((2, 3))], 3)
    sizes = [len(ids) for _, ids in decoder.asked]
    assert sizes == [1, 3, 3, 3]
    for inputs, ids in decoder.asked:
        assert inputs[0].dtype == np.int32 and inputs[0].tolist() == [[5, 6, 7]] * len(ids)
        assert inputs[1].shape == (len(ids), 2, 3)


class Remembering(Fake):
    """States that say which prefix each row has, in several forms."""

    @AutoRegressiveDecoder.wraps(default_rtype="probas", use_states=True)
    def predict(self, inputs, output_ids, states):
        step = states["step"] if states else 0
        if states:
            last = output_ids[:, -1:]
            seen = np.concatenate([states["seen"][0], last], axis=1)
        else:
            seen = output_ids
        np.testing.assert_array_equal(seen, output_ids)
        assert step == output_ids.shape[1]
        return np.array([self.follows(ids) for ids in output_ids]), {"seen": (seen, None), "step": step + 1}


def test_states_follow_their_rows():
    for seed in range(10):
        def follows(prefix, seed=seed):
            return distribution([seed, *prefix], size=6)

        plain, stateful = (cls(None, END, maxlen=7, follows=follows) for cls in (Fake, Remembering))
        assert stateful.beam_search([], 4).tolist() == plain.beam_search([], 4).tolist()
        ours, theirs = (x.random_sample([], 6, seed=seed) for x in (stateful, plain))
        assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in theirs]


def test_states_may_be_tensors():
    from bert4x.backend import ops

    class Tensors(Fake):
        @AutoRegressiveDecoder.wraps(use_states=True)
        def predict(self, inputs, output_ids, states):
            if states is not None:
                output_ids = np.concatenate([np.array(states), output_ids[:, -1:]], axis=1)
            return np.array([self.follows(ids) for ids in output_ids]), ops.convert_to_tensor(output_ids)

    assert Tensors(None, END, 5).beam_search([], 3).tolist() == Fake(None, END, 5).beam_search([], 3).tolist()


def test_states_of_a_wrong_number_of_rows():
    class Wrong(Fake):
        @AutoRegressiveDecoder.wraps(use_states=True)
        def predict(self, inputs, output_ids, states):
            return np.array([self.follows(ids) for ids in output_ids]), np.zeros(7)

    with pytest.raises(ValueError, match=r"got \(7,\) for 1 rows"):
        Wrong(None, END, 5).beam_search([], 3)


def kept_by(probabilities, topk=None, topp=None, temperature=1.0):
    """The distribution that is drawn from, by the words of the specification."""
    p = probabilities ** (1 / temperature)
    p = p / p.sum()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[:topk]
    mass, kept = 0.0, []
    total = sum(p[i] for i in order)
    for i in order:
        kept.append(i)
        mass += p[i] / total
        if topp is not None and mass >= topp:
            break
    q = np.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


@pytest.mark.parametrize("options", [
    {}, {"topk": 3}, {"topp": 0.6}, {"topk": 4, "topp": 0.8}, {"temperature": 0.5}, {"temperature": 2.0, "topk": 3},
    {"topp": 1.0}, {"topk": 1}, {"topk": 99},
])
@pytest.mark.parametrize("cls", [Fake, FakeLogits])
def test_samples_have_the_distribution(cls, options):
    p = np.array([0.05, 0.3, 0.3, 0.15, 0.2])
    n = 20_000
    decoder = cls(None, END, maxlen=1, follows=lambda prefix: p)
    counts = np.bincount([int(ids[0]) for ids in decoder.random_sample([], n, seed=3, **options)], minlength=5)
    expected = n * kept_by(p, **options)
    assert not counts[expected == 0].any()
    chosen = expected > 0
    chi_square = ((counts - expected)[chosen] ** 2 / expected[chosen]).sum()
    assert chi_square < 20  # at 4 degrees of freedom exceeded once in 2,000 draws; the seed is fixed


def test_the_token_that_crosses_topp_stays():
    p = np.array([0.5, 0.25, 0.15, 0.1])
    for topp, kept in ((0.5, 1), (0.51, 2), (0.75, 2), (0.9, 3), (0.91, 4), (1e-9, 1)):
        decoder = Fake(None, -1, maxlen=1, follows=lambda prefix: p)
        assert {int(ids[0]) for ids in decoder.random_sample([], 300, topp=topp, seed=0)} == set(range(kept))


def test_samples_of_several_steps_have_the_distribution():
    n = 20_000
    decoder = Fake(None, END, maxlen=3)
    samples = [tuple(map(int, ids)) for ids in decoder.random_sample([], n, seed=11)]
    outputs = list(outputs_of(3))
    assert set(samples) <= set(outputs)
    expected = n * np.exp([score(ids) for ids in outputs])
    assert abs(expected.sum() - n) < 1e-6
    counts = np.array([samples.count(ids) for ids in outputs])
    often = expected > 10
    assert np.all(np.abs(counts - expected)[often] < 4.5 * np.sqrt(expected[often]))


def test_finished_rows_leave_the_batch():
    decoder = Fake(None, END, maxlen=12)
    samples = decoder.random_sample([[1, 2]], 16, seed=5)
    lengths = np.array([len(ids) for ids in samples])
    assert [len(ids) for _, ids in decoder.asked] == [1, *((lengths > step).sum() for step in range(1, max(lengths)))]
    assert len(set(lengths.tolist())) > 2


def test_seeds():
    def draw(seed):
        return [ids.tolist() for ids in Fake(None, END, maxlen=6).random_sample([], 8, seed=seed)]

    assert draw(1) == draw(1) != draw(2)
    np.random.seed(4)
    first, other = draw(None), draw(None)
    np.random.seed(4)
    assert draw(None) == first != other
    np.random.seed(4)
    draw(9)  # leaves the global generator alone
    assert draw(None) == first


def test_allowed_and_banned_tokens():
    decoder = Fake(None, END, maxlen=5, minlen=3, banned_ids=[np.int64(2)])
    for ids in [decoder.beam_search([], 8), *decoder.random_sample([], 30, seed=0)]:
        assert 2 not in ids

    def alternating(ids):
        return None if len(ids) == 0 else {END, 1} if ids[-1] == 3 else {END, 3}

    for ids in [decoder.beam_search([], 3, allowed=alternating), *decoder.random_sample([], 30, allowed=alternating)]:
        body = ids[ids != END]
        assert np.all(body[1:] != body[:-1]) and len(ids) >= 3


def test_allowed_comes_before_topk():
    p = np.array([0.0, 0.5, 0.3, 0.15, 0.05])
    decoder = Fake(None, END, maxlen=1, follows=lambda prefix: p)
    samples = decoder.random_sample([], 200, topk=2, seed=0, allowed=lambda ids: [2, 3, 4])
    assert {int(ids[0]) for ids in samples} == {2, 3}


def test_predict_as_old_scripts_call_it():
    p = np.array([[0.1, 0.2, 0.7]])
    for cls in (Fake, FakeLogits):
        decoder = cls(None, END, maxlen=1, follows=lambda prefix: p[0])
        ids = np.zeros((1, 0), dtype="int32")
        probabilities, states = decoder.predict([], ids, None, 1, "probas")
        np.testing.assert_allclose(probabilities, p, atol=1e-12)
        assert states is None
        logs, _ = decoder.predict([], ids, None, 0.5, "logits")
        np.testing.assert_allclose(logs, np.log(p**2 / (p**2).sum()), atol=1e-9)
    assert Fake.predict.__name__ == "predict"


def test_impossible_tokens_have_finite_logarithms():
    decoder = Fake(None, END, maxlen=1, follows=lambda prefix: np.array([0.0, 1.0]))
    logs, _ = decoder.predict([], np.zeros((1, 0)), None, 1, "logits")
    np.testing.assert_allclose(logs, np.log(np.array([[0.0, 1.0]]) + 1e-12))


def test_maxlen_zero():
    assert Fake(None, END, 0).beam_search([], 2, length_penalty=1.0).tolist() == []
    assert Fake(7, END, 0).beam_search([], 2).tolist() == [7]
    assert [ids.tolist() for ids in Fake(7, END, 0).random_sample([], 2)] == [[7], [7]]


@pytest.mark.parametrize("end", [None, -1])
def test_without_an_end_token_all_is_written(end):
    for minlen in (1, 3):
        decoder = Fake(None, end, maxlen=3, minlen=minlen)
        best = max(itertools.product(range(SIZE), repeat=3), key=score)
        assert tuple(decoder.beam_search([], SIZE**3)) == best
        assert {len(ids) for ids in decoder.random_sample([], 20, seed=0)} == {3}
        assert SIZE - 1 in np.concatenate(decoder.random_sample([], 50, seed=0))


def test_wrong_arguments():
    decoder = Fake(None, END, maxlen=3)
    for call, match in [
        (lambda: decoder.beam_search([], 0), "topk must be at least 1"),
        (lambda: decoder.random_sample([], 0), "n must be at least 1"),
        (lambda: decoder.random_sample([], 1, topk=0), "topk must be at least 1"),
        (lambda: decoder.random_sample([], 1, topp=0), r"topp must be in \(0, 1\]"),
        (lambda: decoder.random_sample([], 1, temperature=0), "temperature must be positive"),
        (lambda: decoder.beam_search([], 1, allowed=lambda ids: []), "in step 0 .* all are forbidden"),
        (lambda: decoder.random_sample([], 1, allowed=lambda ids: []), "in step 0 .* all are forbidden"),
        (lambda: Fake(None, END, 3, 4), "minlen at most maxlen"),
        (lambda: Fake(None, END, -1), "maxlen must be at least 0"),
        (lambda: Fake(None, END, 3, banned_ids=[-1]), "banned_ids must be .* at least 0; got -1"),
        (lambda: Fake(None, END, 3, banned_ids=[1, SIZE]).beam_search([], 1), f"below {SIZE}, .* got {SIZE}"),
        (lambda: Fake(None, 9, 3).random_sample([], 1), f"end_id .* below {SIZE}, .* got 9"),
        (lambda: AutoRegressiveDecoder.wraps("tokens"), "'probas' or 'logits'"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    for call in (lambda: decoder.beam_search([], 2.5), lambda: Fake(None, END, 3.0), lambda: Fake(None, END, 3, "1")):
        with pytest.raises(TypeError, match="must be an integer; got"):
            call()
    with pytest.raises(NotImplementedError, match="must define predict"):
        AutoRegressiveDecoder(None, END, 3).beam_search([], 1)


@pytest.mark.parametrize("cls", [Fake, FakeLogits])
def test_nan_says_which_step(cls):
    decoder = cls(None, END, 5, 5, follows=lambda prefix: np.full(3, np.nan) if len(prefix) == 2 else np.ones(3) / 3)
    with pytest.raises(ValueError, match="step 2"):
        decoder.beam_search([], 2)
    with pytest.raises(ValueError, match="step 2"):
        decoder.random_sample([], 2)


def test_a_prediction_of_the_wrong_shape():
    decoder = Fake(None, END, 2, follows=lambda prefix: np.ones((2, 3)) / 3)
    with pytest.raises(ValueError, match=r"must return \[rows, V\]; got shape \(1, 2, 3\)"):
        decoder.beam_search([], 1)


def test_it_needs_no_keras():
    code = (
        "import sys, numpy as np; from bert4x.snippets import AutoRegressiveDecoder as A\n"
        "class D(A):\n"
        "    @A.wraps()\n"
        "    def predict(self, inputs, output_ids, states): return np.ones((len(output_ids), 3)) / 3\n"
        "d = D(None, 0, 3); d.beam_search([], 2); d.random_sample([], 2)\n"
        "print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout == "set()\n", done.stdout + done.stderr
