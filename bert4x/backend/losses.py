"""Losses over raw class scores in which any number of classes may be right."""

import keras
from keras import ops

from bert4x.backend.tensors import ABSENT

_NEVER = -1e9  # exp of it is 0 in float32


@keras.saving.register_keras_serializable(package="bert4x")
def multilabel_categorical_crossentropy(y_true, y_pred):
    """Multi-label cross-entropy: pushes wrong classes below 0 and right ones above.

    L = log(1 + sum_i (1 - y_i) e^(s_i)) + log(1 + sum_j y_j e^(-s_j)) over the last axis, in nats. Predict
    the classes with s > 0; for soft targets sigmoid(2 s) is the probability.

    Args:
        y_true: targets y in [0, 1], soft ones too; constants.
        y_pred: raw scores s, no activation. At or below -1e4 a class counts as absent: no loss, no gradient.
    Shapes: y_true and y_pred [..., L]; returns [...], float32 (float64 for float64 scores).
    Source: kexue.fm archives 7359.
    """
    scores, present = _scores(y_pred)
    y_true = ops.stop_gradient(ops.cast(y_true, scores.dtype))
    return _wrong(scores, present, y_true) + _right(scores, present, y_true)


@keras.saving.register_keras_serializable(package="bert4x")
def sparse_multilabel_categorical_crossentropy(y_true, y_pred, mask_zero=False):
    """`multilabel_categorical_crossentropy` with the right classes given as ids: no target array is needed.

    Args:
        y_true: int ids of the right classes, distinct in each row.
        y_pred: raw scores, as in the dense form.
        mask_zero: class 0 does not exist: its id is padding and its score is ignored.
    Shapes: y_true [..., P], y_pred [..., L]; returns [...].
    Source: kexue.fm archives 7359.
    """
    scores, present = _scores(y_pred)
    ids = ops.cast(y_true, "int32")
    if mask_zero:
        present = ops.logical_and(present, ops.arange(ops.shape(scores)[-1]) > 0)
    chosen = ops.take_along_axis(scores, ids, axis=-1)
    counted = ops.take_along_axis(ops.broadcast_to(present, ops.shape(scores)), ids, axis=-1)
    right = _log_one_plus_sum_exp(ops.where(counted, -chosen, _NEVER))
    # The right classes are left out of the sum. Subtracting them from the sum over all classes, as is often
    # done, loses everything as soon as one of them dominates.
    wrong = ops.logical_and(present, ops.logical_not(_membership(ids, scores)))
    return _log_one_plus_sum_exp(ops.where(wrong, scores, _NEVER)) + right


def _scores(y_pred):
    """Scores in float32 or better, 0 where absent (keeps gradients finite), and which are present."""
    dtype = "float64" if keras.backend.standardize_dtype(y_pred.dtype) == "float64" else "float32"
    scores = ops.cast(y_pred, dtype)
    present = scores > ABSENT
    return ops.where(present, scores, 0.0), present


def _wrong(scores, present, y_true):
    allowed = ops.logical_and(present, y_true < 1)
    weight = ops.log(ops.where(allowed, 1.0 - y_true, 1.0))
    return _log_one_plus_sum_exp(ops.where(allowed, scores + weight, _NEVER))


def _right(scores, present, y_true):
    allowed = ops.logical_and(present, y_true > 0)
    weight = ops.log(ops.where(allowed, y_true, 1.0))
    return _log_one_plus_sum_exp(ops.where(allowed, weight - scores, _NEVER))


def _log_one_plus_sum_exp(terms):
    """log(1 + sum exp(terms)) over the last axis, with the largest exponent taken out."""
    top = ops.stop_gradient(ops.maximum(ops.max(terms, axis=-1), 0.0))
    total = ops.sum(ops.exp(terms - ops.expand_dims(top, -1)), axis=-1)
    return top + ops.log1p(ops.expm1(-top) + total)


def _membership(ids, scores):
    """Bool [..., L]: which classes are among the ids [..., P] of their row."""
    width, shape = ops.shape(scores)[-1], ops.shape(scores)
    ids = ops.reshape(ids, (-1, ops.shape(ids)[-1]))
    rows = ops.shape(ids)[0]
    places = ops.reshape(ids + width * ops.expand_dims(ops.arange(rows), 1), (-1, 1))
    counts = ops.scatter(places, ops.ones_like(places[:, 0]), (rows * width,))
    return ops.reshape(counts, shape) > 0
