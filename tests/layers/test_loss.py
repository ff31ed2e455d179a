"""Losses as layers: values, masks, metrics, several outputs, half precision, saved models."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import K
from bert4x.layers import Embedding, Loss, SequenceCrossEntropy
from tests.layers.helpers import WithMask, mask_of, to_arrays

IDS, MASK = np.array([[1, 2, 3, 0], [2, 0, 1, 1]]), np.array([[0, 0, 1, 1], [0, 1, 1, 0]])
LOGITS = np.fromfunction(lambda b, t, v: np.sin(b + 2 * t + 3 * v), (2, 4, 4)).astype("float32")
VALUE = 1.88304868715  # training.md 6, [loss.sequence_ce]


@keras.saving.register_keras_serializable(package="tests")
class Distance(Loss):
    """What users write: mean |y - p|, and a metric."""

    def compute_loss(self, inputs, mask=None):
        y_true, y_pred = inputs
        loss = K.mean(K.abs(K.cast(y_true, "float32") - K.cast(y_pred, "float32")))
        self.add_metric(2 * loss, name="double", aggregation="mean")
        return loss


def value(layer, inputs):
    """The loss that a call adds."""
    layer([x if ops.is_tensor(x) else ops.convert_to_tensor(x) for x in inputs])
    return to_arrays(layer.losses[-1])[0]


def test_value_of_the_specification(tolerance):
    np.testing.assert_allclose(value(SequenceCrossEntropy(weighted=True, from_logits=True), [IDS, MASK, LOGITS]),
                               VALUE, atol=tolerance)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    got = value(SequenceCrossEntropy(weighted=True), [IDS, MASK, probabilities])
    np.testing.assert_allclose(got, VALUE, atol=tolerance)
    unshifted = SequenceCrossEntropy(weighted=True, from_logits=True, shift=False)
    got = value(unshifted, [IDS[:, 1:], MASK[:, 1:], LOGITS[:, :-1]])
    np.testing.assert_allclose(got, VALUE, atol=tolerance)


def test_masks_are_weights(tolerance):
    """The mask of the scores or of the ids, or both; all four tokens masked give 0."""
    loss = SequenceCrossEntropy(from_logits=True)
    scores = WithMask()([LOGITS, MASK])
    np.testing.assert_allclose(value(loss, [IDS, scores]), VALUE, atol=tolerance)
    ids = WithMask()([IDS, np.array([[0, 1, 1, 1], [1, 1, 1, 0]])])
    more = WithMask()([LOGITS, np.array([[1, 0, 1, 1], [1, 1, 1, 1]])])
    np.testing.assert_allclose(value(loss, [ids, more]), VALUE, atol=tolerance)
    assert value(loss, [IDS, WithMask()([LOGITS, 0 * MASK])]) == 0


def test_several_scores_are_weighted(tolerance):
    layer = SequenceCrossEntropy(weighted=True, from_logits=True, factors=(1.0, 0.5))
    first = value(SequenceCrossEntropy(weighted=True, from_logits=True), [IDS, MASK, 2 * LOGITS])
    np.testing.assert_allclose(value(layer, [IDS, MASK, LOGITS, 2 * LOGITS]), VALUE + first / 2, atol=tolerance)
    assert [m.name for m in layer.metrics] == ["loss_1", "loss_2", "accuracy"]
    np.testing.assert_allclose(float(layer.metrics[1].result()), first, atol=tolerance)
    assert float(layer.metrics[2].result()) == 0.25
    with pytest.raises(ValueError, match="ids, weights, scores"):
        layer([IDS, MASK, LOGITS])


def test_r_drop_of_sequences(tolerance):
    """Two passes over each sample; the divergence is averaged over the tokens that count."""
    ids, mask = np.repeat(IDS, 2, 0), np.repeat(MASK, 2, 0)
    scores = np.stack([LOGITS[0], LOGITS[1], LOGITS[1], LOGITS[0] * 2])
    plain, both = (SequenceCrossEntropy(weighted=True, from_logits=True, rdrop_alpha=a) for a in (None, 3.0))
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    divergence = ((p[::2] - p[1::2]) * np.log(p[::2] / p[1::2])).sum(-1)[:, :-1]
    weights = MASK[:, 1:]
    want = 3 / 4 * (divergence * weights).sum() / weights.sum()
    got = value(both, [ids, mask, scores]) - value(plain, [ids, mask, scores])
    np.testing.assert_allclose(got, want, atol=tolerance)
    same = np.repeat(LOGITS, 2, 0)
    assert value(both, [ids, mask, same]) == value(plain, [ids, mask, same])


@pytest.mark.parametrize(("axis", "numbers"), [(None, [0, 1]), (0, [0]), (-1, [1]), ([1, 0], [1, 0])])
def test_outputs_and_their_masks(axis, numbers):
    masks = [None, MASK.astype(bool)]
    inputs = [ops.convert_to_tensor(LOGITS), WithMask()([LOGITS + 1, MASK])]
    outputs = keras.tree.flatten(Distance(axis)(inputs))
    assert isinstance(Distance(axis)(inputs), list) == (axis is None or isinstance(axis, list))
    for output, number in zip(outputs, numbers, strict=True):
        np.testing.assert_array_equal(to_arrays(output)[0], LOGITS + number)
        np.testing.assert_equal(mask_of(output), masks[number])
    with pytest.raises(ValueError, match="inputs 0 to 1"):
        Distance(2)(inputs)
    with pytest.raises(NotImplementedError, match="compute_loss"):
        Loss()(inputs)
    with pytest.raises(ValueError, match="aggregation"):
        Loss().add_metric(0.0, aggregation="sum")


def model(policy="float32", seed=0):
    """Predicts a large id from a sequence; the label is an input, float as an old Input without dtype."""
    keras.utils.set_random_seed(seed)
    label, ids = keras.Input((1,)), keras.Input((None,), dtype="int32")
    hidden = Embedding(9, 4, mask_zero=True, dtype=policy)(ids)
    hidden = keras.layers.GlobalAveragePooling1D(dtype=policy)(hidden)
    hidden = keras.layers.Dense(1, use_bias=False, dtype=policy)(hidden)
    built = keras.Model([label, ids], Distance(1, dtype=policy)([label, hidden]))
    built.compile(keras.optimizers.SGD(0.1))
    return built


DATA = [np.full((8, 1), 9001.0, "float32"), np.arange(40).reshape(8, 5) % 9]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_labels_are_not_cast(policy):
    """9001 is no bfloat16 or float16 number; a label that was cast would be 8992 or 9000."""
    trained = model(policy)
    logs = trained.evaluate(DATA, verbose=0, return_dict=True)
    assert abs(logs["loss"] - 9001) < 0.5
    np.testing.assert_allclose(logs["double"], 2 * logs["loss"], rtol=1e-6)
    history = trained.fit(DATA, batch_size=4, epochs=2, verbose=0, validation_data=(DATA,)).history
    assert history["loss"][1] < history["loss"][0]
    np.testing.assert_allclose(history["double"], 2 * np.array(history["loss"]), rtol=1e-6)
    np.testing.assert_allclose(history["val_double"], 2 * np.array(history["val_loss"]), rtol=1e-6)
    assert trained.predict(DATA, verbose=0).shape == (8, 1)


def test_a_saved_model_trains_on(tmp_path):
    trained = model()
    trained.fit(DATA, verbose=0)
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, two in zip(trained.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(two))
    one, two = (m.fit(DATA, verbose=0).history for m in (trained, again))
    np.testing.assert_allclose(two["double"], one["double"], rtol=1e-6)


def test_two_losses_in_one_model():
    ids = keras.Input((None,), dtype="int32")
    scores = keras.layers.Embedding(9, 9)(ids)
    first = Distance(1)([ids, scores[:, :, 0]])
    built = keras.Model(ids, [first, SequenceCrossEntropy(from_logits=True)([ids, scores])])
    built.compile("sgd")
    logs = built.evaluate(DATA[1], verbose=0, return_dict=True)
    assert set(logs) == {"loss", "double", "accuracy"}
    np.testing.assert_allclose(logs["loss"] - logs["double"] / 2, np.log(9), atol=0.1)
