"""CRF, MEMM and Viterbi against enumeration and the numbers of the specification."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import runtime
from bert4x.layers import ConditionalRandomField, MaximumEntropyMarkovModel
from bert4x.snippets import ViterbiDecoder
from tests.layers.helpers import WithMask, gradients, to_arrays
from tests.reference import chains as reference

RANDOM = np.random.default_rng(0)
LENGTHS = [4, 3, 1, 5]
SCORES = 2 * RANDOM.standard_normal((4, 5, 3)).astype("float32")
LABELS = RANDOM.integers(0, 3, (4, 5)).astype("int32")
TRANS = RANDOM.standard_normal((3, 3)).astype("float32")
MASK = np.arange(5) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def spec(shared_data):
    """Inputs and expected values of training.md, section 6."""
    text = (shared_data.parent / "spec" / "training.md").read_text(encoding="utf-8")
    data = json.loads(re.search(r"```json\n(\{.*?)```", text, re.S)[1])
    return data["inputs"], data["loss"]


def crf_with(trans, **options):
    """A CRF with these effective transitions."""
    layer = ConditionalRandomField(**options)
    layer.build((None, None, len(trans)))
    layer.weights[0].assign(np.asarray(trans) / layer.lr_multiplier)
    return layer


def memm_with(*weights, **options):
    layer = MaximumEntropyMarkovModel(**options)
    layer.build((None, None, len(weights[0])))
    layer.set_weights([np.asarray(w) / layer.lr_multiplier for w in weights])
    return layer


def masked(layer, scores, mask):
    """What the layer makes of scores that carry a mask."""
    return layer(WithMask()([np.asarray(scores, "float32"), np.asarray(mask, bool)]))


def numpy(x):
    return to_arrays(x)[0]


def value_and_gradients(layer, scores, labels, mask):
    """Loss summed over the rows, and its gradients for the scores and the transitions."""

    def loss(x):
        with runtime.overridden([(layer.weights[0], x[1])], layer):
            return ops.sum(layer.sparse_loss(ops.convert_to_tensor(labels), masked(layer, x[0], mask)))

    def masked(layer, x, mask):
        return layer(x, mask=ops.convert_to_tensor(mask))

    value, found = runtime.value_and_grad(loss, [scores, layer.weights[0].value])
    return float(numpy(value)), *to_arrays(found)


@pytest.mark.parametrize("multiplier", [1, 10])
def test_crf_equals_enumeration(multiplier, tolerance, tolerances):
    layer = crf_with(TRANS, lr_multiplier=multiplier)
    np.testing.assert_allclose(numpy(layer.trans), TRANS, atol=tolerance)
    got = numpy(layer.sparse_loss(LABELS, masked(layer, SCORES, MASK)))
    want = [reference.nll(s[:n], TRANS, y[:n]) for s, y, n in zip(SCORES, LABELS, LENGTHS, strict=True)]
    np.testing.assert_allclose(got, want, atol=10 * tolerance)
    one_hot = np.eye(3)[LABELS]
    np.testing.assert_allclose(numpy(layer.dense_loss(one_hot, masked(layer, SCORES, MASK))), want, atol=10 * tolerance)
    total, scores, trans = value_and_gradients(layer, SCORES, LABELS, MASK)
    assert total == pytest.approx(sum(want), abs=100 * tolerance)
    moves = np.zeros((3, 3))
    for i, n in enumerate(LENGTHS):
        marginals, expected = reference.expected(SCORES[i, :n], TRANS)
        np.testing.assert_allclose(scores[i, :n], marginals - np.eye(3)[LABELS[i, :n]], atol=tolerances["gradient"])
        assert (scores[i, n:] == 0).all()
        np.add.at(expected, (LABELS[i, : n - 1], LABELS[i, 1:n]), -1)
        moves += expected
    np.testing.assert_allclose(trans, multiplier * moves, atol=multiplier * tolerances["gradient"])


def test_crf_numbers_of_the_specification(spec, tolerances):
    inputs, want = spec
    layer = crf_with(inputs["trans"])
    mask = np.arange(4) < np.array(inputs["lengths"])[:, None]
    for i, sample in enumerate(want["crf_memm_samples"]):
        arrays = [np.asarray(inputs[name][i : i + 1] if isinstance(inputs[name], list) else inputs[name])
                  for name in ("logits", "labels")]
        nll, scores, trans = value_and_gradients(layer, arrays[0].astype("float32"), arrays[1], mask[i : i + 1])
        n = inputs["lengths"][i]
        assert nll == pytest.approx(sample["nll"], abs=tolerances["golden"])
        one_hot = np.eye(3)[inputs["labels"][i]]
        np.testing.assert_allclose((scores[0] + one_hot)[:n], sample["marginals"], atol=tolerances["golden"])
        np.testing.assert_allclose(trans, sample["grad_trans"], atol=tolerances["golden"])
        paths, best = layer(arrays[0].astype("float32"), mask=mask[i : i + 1], mode="viterbi", count=1)
        assert numpy(paths)[0, 0, :n].tolist() == sample["viterbi"]["path"]
        assert numpy(best)[0, 0] == pytest.approx(sample["viterbi"]["score"], abs=tolerances["golden"])


def test_vector_of_the_tasks(tolerances):
    """tasks.md A.10."""
    scores, trans = np.array([[[1.0, 0.5], [0.2, 0.8], [0.3, 0.1]]]), [[0.5, -0.5], [-0.2, 0.4]]
    labels = np.array([[0, 1, 1]])
    assert numpy(crf_with(trans).sparse_loss(labels, scores))[0] == pytest.approx(2.024410, abs=tolerances["golden"])
    assert ViterbiDecoder(trans).decode(scores[0]).tolist() == [0, 0, 0]
    loss = numpy(memm_with(trans).sparse_loss(labels, scores))
    assert loss == pytest.approx(0.635446, abs=tolerances["golden"])


def test_a_crf_without_transitions_is_a_softmax(tolerance):
    layer = crf_with(np.zeros((3, 3)))
    each = -np.take_along_axis(SCORES - reference.log_sum_exp(SCORES, -1)[..., None], LABELS[..., None], -1)[..., 0]
    got = numpy(layer.sparse_loss(LABELS, masked(layer, SCORES, MASK)))
    np.testing.assert_allclose(got, (each * MASK).sum(1), atol=10 * tolerance)
    one = numpy(crf_with(TRANS).sparse_loss(LABELS[:, :1], SCORES[:, :1]))
    np.testing.assert_allclose(one, each[:, 0], atol=tolerance)


@pytest.mark.parametrize("kind", ["sum", "constant", "shifted"])
def test_invariances(kind, tolerance):
    shift = RANDOM.standard_normal((4, 5, 1)).astype("float32")
    scores, trans = {
        "sum": (SCORES + shift, TRANS),
        "constant": (SCORES, TRANS + 3),
        "shifted": (SCORES - np.where(np.arange(5)[:, None] < np.array(LENGTHS)[:, None, None] - 1, shift[0, :3, 0], 0),
                    TRANS + shift[0, :3]),
    }[kind]
    want = crf_with(TRANS).sparse_loss(LABELS, masked(crf_with(TRANS), SCORES, MASK))
    layer = crf_with(trans)
    got = layer.sparse_loss(LABELS, masked(layer, scores, MASK))
    np.testing.assert_allclose(numpy(got), numpy(want), atol=10 * tolerance)


def test_padding_in_all_its_forms(tolerance):
    """A mask, minus infinity, wild values under the mask, labels that do not exist: the same loss."""
    layer = crf_with(TRANS)
    want = numpy(layer.sparse_loss(LABELS, masked(layer, SCORES, MASK)))
    for filler in (-np.inf, np.nan, 1e30):
        padded = np.where(MASK[..., None], SCORES, filler).astype("float32")
        given = padded if filler == -np.inf else masked(layer, padded, MASK)
        labels = np.where(MASK, LABELS, -100)
        np.testing.assert_allclose(numpy(layer.sparse_loss(labels, given)), want, atol=tolerance)
        assert numpy(layer.sparse_accuracy(labels, given)) == pytest.approx(
            (SCORES.argmax(-1) == LABELS)[MASK].mean(), abs=tolerance
        )


def test_rows_without_tokens_and_with_holes():
    mask = MASK.copy()
    mask[0] = False
    layer = crf_with(TRANS)
    _, scores, trans = value_and_gradients(layer, SCORES, LABELS, mask)
    loss = numpy(layer.sparse_loss(LABELS, masked(layer, SCORES, mask)))
    assert loss[0] == 0 and np.isfinite(loss).all()
    assert (scores[0] == 0).all() and np.isfinite(scores).all() and np.isfinite(trans).all()
    mask[1] = [True, False, True, False, False]
    mask[2] = [False, True, False, False, False]
    loss = numpy(layer.sparse_loss(LABELS, masked(layer, SCORES, mask)))
    assert np.isnan(loss).tolist() == [False, True, True, False]


@pytest.mark.parametrize("size", [50, 1e4, 1e9])
def test_extreme_numbers(size):
    """Forbidden transitions and labels, scores far apart: finite, and exact where the specification asks for it."""
    trans = TRANS.copy()
    trans[0, 1] = -size
    scores = SCORES.copy()
    scores[3, 2] = [0, -min(size, 9e3), 200]
    labels = np.array([[0, 0, 2, 1, 1]] * 4)
    layer = crf_with(trans)
    total, gradient, moves = value_and_gradients(layer, scores, labels, MASK)
    want = sum(reference.nll(s[:n].astype("float64"), trans.astype("float64"), y[:n])
               for s, y, n in zip(scores, labels, LENGTHS, strict=True))
    assert total == pytest.approx(want, rel=1e-4)
    assert np.isfinite(gradient).all() and np.isfinite(moves).all() and abs(moves[0, 1]) < 1e-4


def test_long_sequences_are_exact(tolerances):
    """512 tokens against the recursion in float64."""
    scores, labels = 5 * RANDOM.standard_normal((1, 512, 4)), RANDOM.integers(0, 4, (1, 512))
    trans = 3 * RANDOM.standard_normal((4, 4))
    state = scores[0, 0]
    for here in scores[0, 1:]:
        state = here + reference.log_sum_exp(state[:, None] + trans, 0)
    want = reference.log_sum_exp(state) - reference.paths_score(scores[0], trans, labels[0])
    got = numpy(crf_with(trans).sparse_loss(labels, scores.astype("float32")))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_second_derivatives(tolerances):
    """The gradient of a gradient, as a gradient penalty needs it: a finite difference of the first."""
    layer = crf_with(TRANS)

    def first(x):
        loss = lambda s: ops.sum(layer.sparse_loss(LABELS[:2, :4], s))  # noqa: E731
        return runtime.value_and_grad(loss, x)[1]

    _, got = runtime.value_and_grad(lambda x: ops.sum(ops.square(first(x))), SCORES[:2, :4])
    got, step = numpy(got), 1e-2
    for place in ((0, 0, 0), (0, 2, 1), (1, 3, 2)):
        change = np.zeros_like(SCORES[:2, :4])
        change[place] = step
        values = [np.square(numpy(first(SCORES[:2, :4] + sign * change))).sum() for sign in (1, -1)]
        assert got[place] == pytest.approx((values[0] - values[1]) / (2 * step), abs=10 * tolerances["gradient"])


def test_boundaries(tolerance):
    layer = ConditionalRandomField(2, use_boundaries=True)
    layer.build((None, None, 3))
    start, end = np.array([[0.5, -1, 0.2]]), np.array([[1.0, 0, -0.7]])
    layer.set_weights([TRANS / 2, start / 2, end / 2])
    scores = SCORES.astype("float64")
    scores[:, 0] += start
    for row, n in zip(scores, LENGTHS, strict=True):
        row[n - 1] += end[0]
    given = masked(layer, SCORES, MASK)
    want = [reference.nll(s[:n], TRANS, y[:n]) for s, y, n in zip(scores, LABELS, LENGTHS, strict=True)]
    np.testing.assert_allclose(numpy(layer.sparse_loss(LABELS, given)), want, atol=10 * tolerance)
    paths = numpy(layer(given, mode="viterbi"))
    for row, path, n in zip(scores, paths, LENGTHS, strict=True):
        assert path[:n].tolist() == reference.best(row[:n], TRANS)[0][0].tolist()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_best_paths_equal_enumeration(count, tolerance):
    layer = crf_with(TRANS)
    paths, scores = (numpy(x) for x in layer(masked(layer, SCORES, MASK), mode="viterbi", count=count))
    assert paths.shape == (4, count, 5) and scores.shape == (4, count)
    for i, n in enumerate(LENGTHS):
        found, values = reference.best(SCORES[i, :n].astype("float64"), TRANS)
        exist = min(count, len(found))
        np.testing.assert_array_equal(paths[i, :exist, :n], found[:exist])
        np.testing.assert_allclose(scores[i, :exist], values[:exist], atol=10 * tolerance)
        assert (scores[i, exist:] < -1e29).all()
        assert (paths[i, :, n:] == 0).all()


def test_equal_paths_in_order_of_their_labels():
    layer = crf_with(np.zeros((2, 2)))
    paths = numpy(layer(np.zeros((1, 2, 2)), mode="viterbi", count=4)[0])
    assert sorted(map(tuple, paths[0].tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert paths[0, 0].tolist() == [0, 0]
    assert ViterbiDecoder(np.zeros((2, 2))).decode(np.zeros((3, 2))).tolist() == [0, 0, 0]


def test_numpy_decoder(spec):
    inputs, want = spec
    for i, sample in enumerate(want["crf_memm_samples"]):
        nodes = np.array(inputs["logits"][i][: inputs["lengths"][i]])
        kept = nodes.copy()
        for name, ends in (("viterbi", {}), ("viterbi_start0", {"starts": [0]}),
                           ("viterbi_start0_end0", {"starts": [0], "ends": [0]})):
            assert ViterbiDecoder(inputs["trans"], **ends).decode(nodes).tolist() == sample[name]["path"]
        np.testing.assert_array_equal(nodes, kept)


def test_numpy_decoder_equals_the_graph():
    layer = crf_with(TRANS)
    paths = numpy(layer(masked(layer, SCORES, MASK), mode="viterbi"))
    decoder = ViterbiDecoder(numpy(layer.trans))
    for row, path, n in zip(SCORES, paths, LENGTHS, strict=True):
        assert decoder.decode(row[:n]).tolist() == path[:n].tolist()


def test_constraints_of_the_numpy_decoder():
    assert ViterbiDecoder(TRANS, starts=[1, 2], ends=[0, 2]).decode(SCORES[0, :1]).tolist() == [2]
    with pytest.raises(ValueError, match="no path has a finite score"):
        ViterbiDecoder(TRANS, starts=[1], ends=[0]).decode(SCORES[0, :1])
    with pytest.raises(ValueError, match="at least one"):
        ViterbiDecoder(TRANS, starts=[])
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        ViterbiDecoder(TRANS, ends=[3])
    with pytest.raises(ValueError, match="must be square"):
        ViterbiDecoder(TRANS[:2])
    for nodes in (np.zeros((0, 3)), np.zeros((2, 4)), np.zeros(3)):
        with pytest.raises(ValueError, match="nodes must be"):
            ViterbiDecoder(TRANS).decode(nodes)


def test_metrics(tolerance):
    layer = crf_with(TRANS)
    given = masked(layer, SCORES, MASK)
    paths = numpy(layer(given, mode="viterbi"))
    labels = paths.copy()
    labels[0, 1] = (labels[0, 1] + 1) % 3
    assert numpy(layer.sequence_accuracy(labels, given)).tolist() == [0, 1, 1, 1]
    assert numpy(layer.viterbi_accuracy(labels[..., None], given)) == pytest.approx(12 / 13, abs=tolerance)
    assert numpy(layer.sparse_accuracy(np.where(MASK, SCORES.argmax(-1), 7), given)) == 1
    assert numpy(layer.dense_accuracy(np.eye(3)[SCORES.argmax(-1)], given)) == 1


def test_memm_numbers_of_the_specification(spec, tolerances):
    inputs, want = spec
    logits, labels = np.array(inputs["logits"], "float32"), np.array(inputs["labels"])
    mask = np.arange(4) < np.array(inputs["lengths"])[:, None]
    for name, halve in (("dense", False), ("dense_half", True), ("lowrank", False), ("lowrank_half", True)):
        low = name.startswith("lowrank")
        weights = [inputs["left"], inputs["right"]] if low else [inputs["trans"]]
        layer = memm_with(*weights, lr_multiplier=4, hidden_dim=2 if low else None, halve=halve)
        given = masked(layer, logits, mask)
        expected = pytest.approx(want["memm_batch"][name]["average"], abs=tolerances["golden"])
        assert numpy(layer.sparse_loss(labels, given)) == expected
        assert numpy(layer.dense_loss(np.eye(3)[labels], given)) == expected


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_memm_decoders(spec, direction, tolerances):
    inputs, want = spec
    layer = memm_with(inputs["trans"])
    mask = np.arange(4) < np.array(inputs["lengths"])[:, None]
    given = masked(layer, inputs["logits"], mask)
    paths, scores = layer(given, mode="viterbi", count=1, direction=direction)
    for i, sample in enumerate(want["crf_memm_samples"]):
        expected = sample[f"memm_map_{'bidirectional' if direction == 'both' else direction}"]
        assert numpy(paths)[i, 0, : inputs["lengths"][i]].tolist() == expected["path"]
        assert numpy(scores)[i, 0] == pytest.approx(expected["logp"], abs=tolerances["golden"])
    plain = numpy(layer(given, mode="viterbi"))
    assert plain[0].tolist() == want["crf_memm_samples"][0]["viterbi"]["path"]


def test_low_rank_equals_full_rank(tolerance, tolerances):
    left, right = RANDOM.standard_normal((2, 3, 2)).astype("float32")
    low, full = memm_with(left, right, hidden_dim=2), memm_with(left @ right.T)
    np.testing.assert_allclose(numpy(low.trans), left @ right.T, atol=tolerance)
    losses = [lambda x=x: x.sparse_loss(LABELS, masked(x, SCORES, MASK)) for x in (low, full)]
    np.testing.assert_allclose(numpy(losses[0]()), numpy(losses[1]()), atol=tolerance)
    moves = gradients(full, losses[1])["trans"]
    found = gradients(low, losses[0])
    np.testing.assert_allclose(found["left"], moves @ right, atol=tolerances["gradient"])
    np.testing.assert_allclose(found["right"], moves.T @ left, atol=tolerances["gradient"])


@pytest.mark.parametrize("kind", [ConditionalRandomField, MaximumEntropyMarkovModel])
def test_graphs_of_unknown_length(kind, tolerance):
    """TensorFlow makes one graph for free shapes when it has seen a few."""
    layer = kind()
    layer.build((None, None, 3))

    def function(scores, labels, mask):
        return runtime.value_and_grad(lambda x: ops.sum(layer.sparse_loss(labels, layer(x, mask=mask))), scores)

    compiled = [runtime.jit(function, model=layer), runtime.jit(lambda x, m: layer.best(x, m, 2), model=layer)]
    for rows, length in ((4, 5), (3, 4), (2, 3)):
        arrays = [part[:rows, :length] for part in (SCORES, LABELS, MASK)]
        got, want = to_arrays(compiled[0](*arrays)), to_arrays(function(*map(ops.convert_to_tensor, arrays)))
        for one, two in zip(got, want, strict=True):
            np.testing.assert_allclose(one, two, atol=10 * tolerance)
        paths = to_arrays(compiled[1](arrays[0], arrays[2]))[0]
        np.testing.assert_array_equal(paths, to_arrays(layer.best(arrays[0], ops.convert_to_tensor(arrays[2]), 2))[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ConditionalRandomField, MaximumEntropyMarkovModel])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_trains_saves_and_decodes(kind, policy, tmp_path):
    """A label that depends on the one before: learned, saved, and decoded in a graph of its own."""
    random = np.random.default_rng(1)
    ids = random.integers(1, 5, (64, 6))
    ids[:32, 4:] = 0
    labels = np.cumsum(ids == 1, axis=1) % 2  # changes at each 1, which the scores alone cannot tell
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(5, 4, mask_zero=True, dtype=policy)(inputs)
    layer = kind(lr_multiplier=3, dtype=policy)
    model = keras.Model(inputs, layer(keras.layers.Dense(2, dtype=policy)(hidden)))
    metrics = [layer.sparse_accuracy, layer.viterbi_accuracy, layer.sequence_accuracy]
    model.compile(keras.optimizers.Adam(0.05), loss=layer.sparse_loss, metrics=metrics)
    before = numpy(layer.trans)
    history = model.fit(ids, labels, epochs=8, batch_size=16, verbose=0, shuffle=False).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert np.abs(numpy(layer.trans) - before).max() > 0.5
    assert ("jax" == keras.backend.backend()) == np.isnan(history["viterbi_accuracy"]).any()
    decoder = keras.Model(inputs, layer(model.output, mode="viterbi"))
    paths = decoder.predict(ids, verbose=0)
    assert paths.shape == (64, 6) and (paths[:32, 4:] == 0).all() and paths.dtype == np.int32
    decoder.save(tmp_path / "decoder.keras")
    again = keras.saving.load_model(tmp_path / "decoder.keras")
    np.testing.assert_array_equal(again.predict(ids, verbose=0), paths)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(to_arrays(loaded(ids))[0], to_arrays(model(ids))[0])


def test_errors():
    layer = crf_with(TRANS)
    with pytest.raises(ValueError, match="mode must be"):
        layer(SCORES, mode="best")
    with pytest.raises(ValueError, match="count is the number"):
        layer(SCORES, count=2)
    with pytest.raises(ValueError, match="direction must be"):
        memm_with(TRANS)(SCORES, mode="viterbi", direction="up")
    with pytest.raises(ValueError, match="halve=True"):
        memm_with(TRANS, halve=True)(SCORES, mode="viterbi", direction="both")
