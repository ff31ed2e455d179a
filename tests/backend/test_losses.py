"""Losses: values of training.md 2 and 6 and tasks.md A.10, and what must stay finite."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import (
    RDropCrossentropy,
    multilabel_categorical_crossentropy,
    sequence_accuracy,
    sequence_crossentropy,
    sparse_multilabel_categorical_crossentropy,
    symmetric_divergence,
    token_crossentropy,
)
from bert4x.backend.runtime import to_numpy, value_and_grad
from bert4x.snippets import repeat_rows

SCORES = [1.2, -0.7, 0.3, -2.0, 2.5]
TARGETS = [1, 0, 0, 1, 1]


def dense(targets, scores, dtype="float32"):
    """Loss and gradient as NumPy arrays."""
    scores = ops.convert_to_tensor(scores, dtype=dtype)
    targets = ops.convert_to_tensor(targets, dtype="float32")
    loss, gradient = value_and_grad(lambda s: ops.sum(multilabel_categorical_crossentropy(targets, s)), scores)
    return np.float32(to_numpy(loss)), np.float32(to_numpy(gradient))


def sparse(ids, scores, **options):
    scores, ids = ops.convert_to_tensor(scores, dtype="float32"), ops.convert_to_tensor(ids, dtype="int32")

    def loss(s):
        return ops.sum(sparse_multilabel_categorical_crossentropy(ids, s, **options))

    return tuple(to_numpy(x) for x in value_and_grad(loss, scores))


@pytest.mark.parametrize(
    ("targets", "expected", "gradient"),
    [
        (
            TARGETS,
            3.21767358986,
            [-0.0343345530337, 0.174458125423, 0.474226352165, -0.842313459103, -0.00935725730129],
        ),
        (
            [0.9, 0.1, 0, 0.5, 1],
            2.82009509042,
            [0.0522258893688, 0.101455036102, 0.422297395254, -0.68267570912, -0.0156380285225],
        ),
        ([0] * 5, 2.91692660716, None),
        ([1] * 5, 2.44468397543, None),
    ],
)
def test_values_and_gradients(targets, expected, gradient, tolerance):
    loss, got = dense(targets, SCORES)
    np.testing.assert_allclose(loss, expected, atol=tolerance)
    if gradient:
        np.testing.assert_allclose(got, gradient, atol=tolerance)


def test_values_of_the_task_page(tolerance):
    np.testing.assert_allclose(dense([1, 0, 1, 0], [2, -1, 0.5, -3])[0], 0.903969, atol=tolerance)
    np.testing.assert_allclose(dense([0] * 4, [0] * 4)[0], 1.609438, atol=tolerance)


def test_one_class_is_binary_cross_entropy(tolerance):
    np.testing.assert_allclose(dense([1], [0.7])[0], 0.403186048885, atol=tolerance)


def test_soft_targets_are_fitted_at_half_the_logit(tolerance):
    y = np.array([0.2, 0.5, 0.8])
    np.testing.assert_allclose(dense(y, 0.5 * np.log(y / (1 - y)))[1], np.zeros(3), atol=tolerance)


def test_extreme_scores_stay_finite(tolerance):
    loss, gradient = dense([1, 0], [-1000, 1000])
    assert loss == 2000
    np.testing.assert_allclose(gradient, [-1, 1], atol=tolerance)
    loss, _ = dense([1, 0], [20, -20])
    np.testing.assert_allclose(loss, 2 * np.exp(-20), rtol=1e-5)  # not rounded to zero


MASKS = [(-np.inf, "float32"), (-1e9, "float32"), (-1e9, "bfloat16"), (-3e4, "float16"), (-np.inf, "float16")]


@pytest.mark.parametrize(("mask", "dtype"), MASKS)
def test_masked_classes_do_not_exist(mask, dtype, tolerances):
    scores = [1.2, -0.7, 0.3, mask, 2.5]
    for targets in ([1, 0, 0, 0, 1], [1, 0, 0, 1, 1]):  # whatever the target says
        loss, gradient = dense(targets, scores, dtype)
        np.testing.assert_allclose(loss, 1.37052745495, atol=tolerances[dtype])
        expected = [-0.21773927463, 0.174458125423, 0.474226352165, 0.0, -0.0593408749287]
        np.testing.assert_allclose(gradient, expected, atol=tolerances[dtype])
        assert gradient[3] == 0
    loss, gradient = dense([1, 0], [mask, mask], dtype)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize(("mask", "dtype"), MASKS)
def test_sparse_form_in_half_precision(mask, dtype, tolerances):
    scores = ops.convert_to_tensor([[1.2, -0.7, 0.3, mask, 2.5]], dtype=dtype)
    for ids in ([[0, 4]], [[0, 3, 4]]):
        loss, gradient = value_and_grad(
            lambda s, ids=ids: ops.sum(sparse_multilabel_categorical_crossentropy(ids, s)), scores
        )
        np.testing.assert_allclose(np.float32(to_numpy(loss)), 1.37052745495, atol=tolerances[dtype])
        gradient = np.float32(to_numpy(gradient))[0]
        expected = [-0.21773927463, 0.174458125423, 0.474226352165, 0.0, -0.0593408749287]
        np.testing.assert_allclose(gradient, expected, atol=tolerances[dtype])
        assert gradient[3] == 0


def test_targets_are_constants():
    scores = ops.convert_to_tensor(SCORES)
    _, gradient = value_and_grad(lambda y: multilabel_categorical_crossentropy(y, scores), ops.ones(5) * 0.5)
    assert not to_numpy(gradient).any()


def test_shapes_and_result_type():
    y, s = np.zeros((2, 3, 5)), ops.zeros((2, 3, 5), dtype="float16")
    loss = multilabel_categorical_crossentropy(y, s)
    assert tuple(loss.shape) == (2, 3) and keras.backend.standardize_dtype(loss.dtype) == "float32"
    loss = sparse_multilabel_categorical_crossentropy(np.zeros((2, 3, 1), "int32"), s)
    assert tuple(loss.shape) == (2, 3)


def test_sparse_values(tolerance):
    np.testing.assert_allclose(sparse([0, 3, 4], SCORES)[0], 3.21767358986, atol=tolerance)
    np.testing.assert_allclose(sparse([3, 4, 0, 0], SCORES, mask_zero=True)[0], 3.18273575691, atol=tolerance)
    np.testing.assert_allclose(sparse([0, 0], SCORES, mask_zero=True)[0], 2.71894222409, atol=tolerance)


def test_sparse_keeps_the_negatives_when_a_positive_dominates():
    loss, gradient = sparse([0], [20, -5, -6])
    np.testing.assert_allclose(loss, 0.00917448665289, rtol=1e-5)
    assert -1e-6 < gradient[0] <= 0


def test_sparse_equals_dense_on_any_shape(tolerance):
    random = np.random.default_rng(0)
    scores = random.normal(size=(2, 3, 11)).astype("float32") * 3
    scores[0, 1, 4] = -1e9
    ids = np.stack([random.permutation(np.arange(1, 11))[:4] for _ in range(6)]).reshape(2, 3, 4)
    targets = np.zeros_like(scores)
    np.put_along_axis(targets, ids, 1, axis=-1)
    for a, b in zip(sparse(ids, scores), dense(targets, scores), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-5)
    # With padding: class 0 is as if masked.
    ids[..., 2:] = 0
    targets = np.zeros_like(scores)
    np.put_along_axis(targets, ids, 1, axis=-1)
    masked = scores.copy()
    masked[..., 0] = -np.inf
    for a, b in zip(sparse(ids, scores, mask_zero=True), dense(targets, masked), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("loss", [multilabel_categorical_crossentropy, sparse_multilabel_categorical_crossentropy])
def test_losses_train_and_are_registered(loss, tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3)])
    model.compile("sgd", loss)
    targets = np.eye(3)[:2] if loss is multilabel_categorical_crossentropy else np.array([[0], [1]])
    losses = model.fit(np.eye(2), targets, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").loss is loss


# ---- Sequences ------------------------------------------------------------------------------------------------------

IDS, WEIGHTS = np.array([[1, 2, 3, 0], [2, 0, 1, 1]]), np.array([[0, 0, 1, 1], [0, 1, 1, 0]])
LOGITS = np.fromfunction(lambda b, t, v: np.sin(b + 2 * t + 3 * v), (2, 4, 4)).astype("float32")
PAIRS = np.array([[1, 0.2, -0.5], [0.6, 0.4, -0.1], [-0.3, 0.9, 0.1], [0.2, 0.7, -0.4]], "float32")


def sequence(ids, scores, weights, dtype="float32", **options):
    """Loss and gradient of a sequence as NumPy arrays."""
    scores = ops.convert_to_tensor(scores, dtype=dtype)

    def loss(s):
        return sequence_crossentropy(ids, s, weights, **{"from_logits": True, **options})

    return tuple(np.float32(to_numpy(x)) for x in value_and_grad(loss, scores))


def test_sequence_values(tolerance):
    losses, _ = token_crossentropy(IDS[:, 1:], LOGITS[:, :-1], from_logits=True)
    wanted = [1.76505774119, 2.7788794899, 2.26104886732, 0.825919083146, 1.66634730825, 0.824417975703]
    np.testing.assert_allclose(to_numpy(losses).ravel(), wanted, atol=tolerance)
    loss, gradient = sequence(IDS[:, 1:], LOGITS[:, :-1], WEIGHTS[:, 1:])
    np.testing.assert_allclose(loss, 1.88304868715, atol=tolerance)
    assert (gradient[WEIGHTS[:, 1:] == 0] == 0).all()
    accuracy = sequence_accuracy(IDS[:, 1:], ops.convert_to_tensor(LOGITS[:, :-1]), WEIGHTS[:, 1:])
    assert float(to_numpy(accuracy)) == 0.25
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    loss, _ = sequence(IDS[:, 1:], probabilities[:, :-1], WEIGHTS[:, 1:], from_logits=False)
    np.testing.assert_allclose(loss, 1.88304868715, atol=tolerance)


def test_sequence_without_tokens_and_with_any_ids_where_masked():
    loss, gradient = sequence(IDS, LOGITS, 0 * WEIGHTS)
    assert loss == 0 and not gradient.any()
    wild = np.where(WEIGHTS == 1, IDS, [[-1, 99, 0, 0]] * 2)
    np.testing.assert_array_equal(sequence(wild, LOGITS, WEIGHTS)[1], sequence(IDS, LOGITS, WEIGHTS)[1])
    absent = np.where(WEIGHTS[..., None] == 1, LOGITS, -np.inf)
    loss, gradient = sequence(IDS, absent, WEIGHTS)
    np.testing.assert_allclose(loss, sequence(IDS, LOGITS, WEIGHTS)[0])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mask", "dtype"), MASKS)
def test_sequence_with_masked_scores(mask, dtype, smoothing, tolerances):
    """Class 3 does not exist: as if the scores had three classes, smoothing included."""
    scores, ids = LOGITS.copy(), np.minimum(IDS, 2)
    scores[..., 3] = mask
    loss, gradient = sequence(ids, scores, WEIGHTS, dtype, label_smoothing=smoothing)
    wanted, slope = sequence(ids, LOGITS[..., :3], WEIGHTS, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, wanted, atol=tolerances[dtype])
    np.testing.assert_allclose(gradient[..., :3], slope, atol=tolerances[dtype])
    assert (gradient[..., 3] == 0).all()
    # A token whose right class is absent does not count.
    counted = WEIGHTS * (IDS != 3)
    np.testing.assert_allclose(sequence(IDS, scores, WEIGHTS, dtype)[0], sequence(IDS, scores, counted, dtype)[0])


def test_label_smoothing_is_a_soft_target(tolerance):
    for from_logits in (True, False):
        p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
        targets = 0.8 * np.eye(4)[IDS] + 0.2 / 4
        want = (-(targets * np.log(p)).sum(-1) * WEIGHTS).sum() / WEIGHTS.sum()
        given = LOGITS if from_logits else p
        got, _ = sequence(IDS, given, WEIGHTS, label_smoothing=0.2, from_logits=from_logits)
        np.testing.assert_allclose(got, want, atol=tolerance)


def test_extreme_scores_of_sequences():
    loss, gradient = sequence(np.array([0, 1]), [[1000.0, -1000], [1000, -1000]], None)
    assert loss == 1000 and np.isfinite(gradient).all()
    loss, gradient = sequence(np.array([0, 1]), [[1.0, 0], [1, 0]], None, from_logits=False)
    np.testing.assert_allclose(loss, -np.log(1e-7) / 2, rtol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("alpha", "wanted"), [(4, 0.763940475287), (1, 0.674010529479), (0, 0.644033880876)])
def test_r_drop_values(alpha, wanted, tolerance, tolerances):
    labels = np.array([0, 0, 1, 1])
    for y in (labels, labels[:, None]):
        loss = RDropCrossentropy(alpha, from_logits=True)(y, ops.convert_to_tensor(PAIRS))
        np.testing.assert_allclose(to_numpy(loss), wanted, atol=tolerance)
    p = np.exp(PAIRS) / np.exp(PAIRS).sum(-1, keepdims=True)
    np.testing.assert_allclose(to_numpy(RDropCrossentropy(alpha)(labels, p)), wanted, atol=tolerance)
    half = ops.cast(np.pad(PAIRS, [(0, 0), (0, 1)], constant_values=-1e9), "bfloat16")
    np.testing.assert_allclose(np.float32(to_numpy(RDropCrossentropy(alpha, True)(labels, half))), wanted,
                               atol=tolerances["bfloat16"])


def test_r_drop_needs_pairs():
    with pytest.raises(ValueError, match="even number of them; got 3"):
        RDropCrossentropy()(np.array([0, 0, 1]), ops.convert_to_tensor(PAIRS[:3]))


def test_divergence(tolerance):
    p, q = PAIRS[::2], PAIRS[1::2]
    divergence = symmetric_divergence(p, q, from_logits=True)
    np.testing.assert_allclose(to_numpy(divergence), [0.115822074867, 0.123991113955], atol=tolerance)
    assert (to_numpy(symmetric_divergence(p, p + 3.0, from_logits=True)) < 1e-6).all()
    for dtype in ("float32", "bfloat16", "float16"):
        scores = [ops.cast(np.pad(x, [(0, 0), (0, 1)], constant_values=-np.inf), dtype) for x in (p, q)]
        value, gradient = value_and_grad(lambda s: ops.sum(symmetric_divergence(*s, from_logits=True)), scores)
        assert np.isfinite(np.float32(to_numpy(value)))
        for part in gradient:  # into both
            part = np.float32(to_numpy(part))
            assert np.isfinite(part).all() and part[:, :3].any() and not part[:, 3].any()


def test_r_drop_in_fit_and_in_a_saved_model(tmp_path):
    x, y = repeat_rows((np.eye(4, dtype="float32"), np.array([0, 1, 1, 0])))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5),
                              keras.layers.Dense(2, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.05), RDropCrossentropy(2.0, label_smoothing=0.1))
    losses = model.fit(x, y, shuffle=False, epochs=40, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loss = keras.saving.load_model(tmp_path / "model.keras").loss
    assert (loss.alpha, loss.from_logits, loss.label_smoothing) == (2.0, False, 0.1)
