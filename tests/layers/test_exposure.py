"""Random tokens in a decoder's input, as a layer and on the data, and the layers of which TeaForN is made."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import runtime
from bert4x.layers import ExpectedEmbedding, HighestScores, PreviousOutputs, RandomReplacement, SequenceCrossEntropy
from bert4x.snippets import random_replacement, repeat_rows
from tests.layers.helpers import to_arrays

PAD, START, END = 0, 1, 2


def sample(rows=2000, seed=0):
    """Source [START] ... [END], target ... [END], padding; ids of the source are below 50, of the target above."""
    random = np.random.default_rng(seed)
    ids, target = np.zeros((rows, 60), "int32"), np.zeros((rows, 60), "int32")
    for row in range(rows):
        end = random.integers(40, 58)
        ids[row, :20], ids[row, 20:end] = random.integers(3, 50, 20), random.integers(50, 999, end - 20)
        ids[row, 0], ids[row, 19], ids[row, end - 1], target[row, 20:end] = START, END, END, 1
    return ids, target


def by_layer(ids, target, **options):
    layer = RandomReplacement(special=(PAD, START, END), seed=5, **options)
    inputs = [ops.convert_to_tensor(x) for x in (ids, target) if x is not None]
    return to_arrays(layer(inputs[0] if target is None else inputs, training=True))[0]


def on_data(ids, target, **options):
    return random_replacement(ids, target, random=5, special=(PAD, START, END), **options)


@pytest.mark.parametrize("replaced", [by_layer, on_data])
def test_what_is_replaced_and_by_what(replaced):
    ids, target = sample()
    new = replaced(ids, target)
    assert new.dtype == ids.dtype
    changed = new != ids
    ordinary = (target == 1) & (ids != END)
    assert not changed[~ordinary].any()
    for row in range(len(ids)):  # every token comes from the same target
        assert set(new[row][ordinary[row]]) <= set(ids[row][ordinary[row]])
    assert abs(changed[ordinary].mean() - 0.15) < 0.01  # about 55,000 tokens; few draw themselves
    assert 0.45 < (~changed.any(axis=1)).mean() < 0.55
    heavy = changed[changed.any(axis=1)].sum() / ordinary[changed.any(axis=1)].sum()
    assert abs(heavy - 0.3) < 0.02
    # Drawn uniformly from the whole target: the mean place of origin is its middle.
    places = [np.flatnonzero(ids[row] == token)[0] for row, token in
              zip(np.nonzero(changed)[0], new[changed], strict=True)]
    middles = [np.flatnonzero(ordinary[row]).mean() for row in np.nonzero(changed)[0]]
    assert abs(np.mean(places) - np.mean(middles)) < 0.5


@pytest.mark.parametrize("replaced", [by_layer, on_data])
def test_options_of_replacement(replaced):
    ids, target = sample(300)
    assert (replaced(ids, target, rate=0.0) == ids).all() and (replaced(ids, target, keep=1.0) == ids).all()
    ordinary = (target == 1) & (ids != END)
    every = replaced(ids, target, rate=1.0, keep=0.0, pool="all")
    assert (every[ordinary] < 50).mean() > 0.3 and (every[ordinary] > END).all()  # from the source, but nothing special
    np.testing.assert_array_equal(every[~ordinary], ids[~ordinary])
    alone = replaced(ids, None, rate=1.0, keep=0.0)
    assert (alone != ids)[ids > END].mean() > 0.9 and (alone == ids)[ids <= END].all()
    with pytest.raises(ValueError, match="pool"):
        replaced(ids, target, pool="source")
    nothing = np.full((2, 3), PAD, "int32")
    np.testing.assert_array_equal(replaced(nothing, None, rate=1.0, keep=0.0), nothing)


def test_the_layer_acts_in_training_only_and_draws_anew():
    ids, target = sample(50)
    inputs = [ops.convert_to_tensor(ids), ops.convert_to_tensor(target)]
    layer = RandomReplacement(seed=1)
    np.testing.assert_array_equal(to_arrays(layer(inputs))[0], ids)
    first, second = (to_arrays(layer(inputs, training=True))[0] for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(to_arrays(RandomReplacement(seed=1)(inputs, training=True))[0], first)
    np.testing.assert_array_equal(random_replacement(ids, target, random=3), random_replacement(ids, target, random=3))


def test_the_layer_in_a_model_that_is_trained():
    ids = keras.Input((None,), dtype="int32")
    scores = keras.layers.Dense(999)(keras.layers.Embedding(999, 4)(RandomReplacement()(ids)))
    model = keras.Model(ids, SequenceCrossEntropy(from_logits=True)([ids, scores]))
    model.compile("adam")
    assert np.isfinite(model.fit(sample(16)[0], verbose=0).history["loss"]).all()


def test_repeated_rows():
    batch = ([np.array([[1, 2], [3, 4]]), {"a": np.array([5, 6])}], None)
    (ids, named), nothing = repeat_rows(batch)
    np.testing.assert_array_equal(ids, [[1, 2], [1, 2], [3, 4], [3, 4]])
    np.testing.assert_array_equal(named["a"], [5, 5, 6, 6])
    assert nothing is None
    assert repeat_rows(np.zeros(2), 3).shape == (6,)


def test_highest_scores():
    scores = ops.convert_to_tensor([[[0.1, 3.0, 2.0, -1.0]]])
    values, ids = HighestScores(2)(scores)
    np.testing.assert_allclose(to_arrays([values, ids])[0], [[[3, 2]]])
    assert to_arrays(ids)[0].tolist() == [[[1, 2]]] and str(to_arrays(ids)[0].dtype) == "int32"
    values, ids = HighestScores()(scores)
    assert to_arrays(ids)[0].tolist() == [[[0, 1, 2, 3]]] and values is not None
    shapes = [tuple(t.shape) for t in HighestScores(2)(keras.Input((None, 9)))]
    assert shapes == [(None, None, 2), (None, None, 2)]
    again = HighestScores.from_config(HighestScores(3).get_config())
    assert again.k == 3


# ---- The toy problem of training.md 6, [P-tea] ----------------------------------------------------------------------

E = np.array([[0.5, -0.1], [-0.3, 0.4], [0.2, 0.6], [-0.7, -0.2], [0.1, 0.9]], "float32")
A = np.array([[0.8, -0.5], [0.3, 1.1]], "float32")
W = np.array([[0.9, -0.4, 0.3, 0.2, -0.8], [0.1, 0.7, -0.6, 0.5, 0.4]], "float32")
SEQUENCE = np.array([[0, 2, 1, 4, 3]], "int32")


def decoder(vectors):
    """h_t = tanh(mean of the first t inputs, A)."""
    count = ops.arange(1, 6, dtype="float32")[None, :, None]
    return ops.tanh(ops.matmul(ops.cumsum(vectors, axis=1) / count, A))


@pytest.mark.parametrize(
    ("top_k", "sums", "total"),
    [(None, [6.21736167409, 6.84055971094, 6.92525233707], 2.84223865346),
     (2, [6.21736167409, 6.58958238771, 6.64996478945], 2.79366101633)],
)
def test_teaforn_of_the_specification(top_k, sums, total, tolerance):
    embeddings = ops.take(E, ops.convert_to_tensor(SEQUENCE), axis=0)
    vectors, scores = embeddings, []
    for _ in range(3):
        outputs = decoder(vectors)
        scores.append(ops.matmul(outputs, W))
        if top_k is not None:
            values, ids = HighestScores(top_k)(scores[-1])
            outputs = ExpectedEmbedding()([values, ops.take(E, ids, axis=0)])
        vectors = PreviousOutputs()([embeddings, outputs])
    loss = SequenceCrossEntropy(from_logits=True, factors=(1.0, 0.5, 0.25))
    loss([ops.convert_to_tensor(SEQUENCE), *scores])
    np.testing.assert_allclose(runtime.to_numpy(loss.losses[-1]), total, atol=tolerance)
    means = [float(metric.result()) * 4 for metric in loss.metrics[:3]]
    np.testing.assert_allclose(means, sums, atol=tolerance)
