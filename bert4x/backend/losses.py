"""Losses: multi-label and focal cross-entropies, cross-entropy of sequences with weights and smoothing, R-Drop."""

import keras
from keras import ops

from bert4x.backend.tensors import ABSENT

_NEVER = -1e9  # exp of it is 0 in float32
_SMALLEST = 1e-7  # probabilities below it count as it; a float32 softmax may give 0


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


@keras.saving.register_keras_serializable(package="bert4x")
def focal_loss(y_true, y_pred, alpha=0.25, gamma=2.0):
    """Binary cross-entropy of each element, with less weight for those that are right already.

    L = -alpha y ln(p) (1 - p)^gamma - (1 - alpha) (1 - y) ln(1 - p) p^gamma, in nats. Its mean over what is not masked
    is `weighted_mean(focal_loss(y, p), mask)`.

    Args:
        y_true: targets y in [0, 1].
        y_pred: probabilities p; p and 1 - p count as 1e-8 at least inside the logarithms.
        alpha: share of the positives in the weight.
        gamma: power >= 0; 0 gives the weighted cross-entropy.
    Shapes: both [...]; returns [...], float32 (float64 for float64 probabilities).
    Source: arXiv:1708.02002 eq. 5.
    """
    p, _ = _scores(y_pred)
    y = ops.stop_gradient(ops.cast(y_true, p.dtype))
    right, wrong = (ops.log(ops.maximum(q, 1e-8)) for q in (p, 1.0 - p))
    positive = alpha * y * right * (1.0 - p) ** gamma
    return -positive - (1.0 - alpha) * (1.0 - y) * wrong * p**gamma


def sequence_crossentropy(y_true, y_pred, mask=None, *, from_logits=False, label_smoothing=0.0):
    """Cross-entropy of the tokens that count, as a mean over all of them in the batch.

    L = sum(w CE) / sum(w), in nats per token; 0 if no token counts. Not the mean of the rows' means. A language model
    passes ids[:, 1:], scores[:, :-1] and the weights of ids[:, 1:]; `bert4x.layers.SequenceCrossEntropy` does so.

    Args:
        y_true: int ids of the right classes. What they are where w = 0 makes no difference.
        y_pred: probabilities, or raw scores with from_logits=True, which are more exact. A class whose score is at or
            below -1e4 counts as absent; a token whose right class is absent does not count.
        mask: weights w, bool or numbers; absent: 1.
        label_smoothing: e in [0, 1): the targets are 1 - e for the right class and e shared by all that are present.
    Shapes: y_true and mask [B, T], y_pred [B, T, V]; or without T. Returns a scalar.
    """
    losses, weights = token_crossentropy(y_true, y_pred, mask, from_logits=from_logits, label_smoothing=label_smoothing)
    return weighted_mean(losses, weights)


def sequence_accuracy(y_true, y_pred, mask=None):
    """Share of the tokens that count whose highest score is the right one: sum(w [argmax = y]) / sum(w).

    Shapes: as `sequence_crossentropy`; returns a scalar.
    """
    right = ops.cast(ops.equal(ops.argmax(y_pred, axis=-1), ops.cast(y_true, "int32")), "float32")
    return weighted_mean(right, _weights(mask, right))


def token_crossentropy(y_true, y_pred, mask=None, *, from_logits=False, label_smoothing=0.0):
    """Cross-entropy of each token, and the weight that it counts with; arguments as `sequence_crossentropy`.

    Shapes: y_true and mask [...], y_pred [..., V]; returns two tensors [...], float32 (float64 for float64 scores).
    """
    scores, present = _log_scores(y_pred, from_logits)
    ids = ops.clip(ops.cast(y_true, "int32"), 0, ops.shape(scores)[-1] - 1)
    losses = ops.sparse_categorical_crossentropy(ids, scores, from_logits=True)
    if label_smoothing:
        losses = losses + label_smoothing * _smoothing(ids, scores, present)
    known = ops.take_along_axis(present, ops.expand_dims(ids, -1), axis=-1)[..., 0]
    return ops.where(known, losses, 0.0), ops.where(known, _weights(mask, losses), 0.0)


def weighted_mean(values, weights):
    """sum(w x) / sum(w), or 0 if there are no weights; weights are constants. Returns a scalar."""
    weights = ops.stop_gradient(weights)
    total = ops.sum(weights)
    # where, not multiplication: what is not counted may be infinite.
    counted = ops.where(weights != 0, values, 0.0) * weights
    return ops.sum(counted) / ops.where(total > 0, total, 1.0)


def symmetric_divergence(p_pred, q_pred, *, from_logits=False):
    """KL(p || q) + KL(q || p) of the distributions that two tensors of scores or probabilities stand for, in nats.

    Gradients flow into both. Classes at or below -1e4 are absent.

    Shapes: two tensors [..., V]; returns [...], float32 (float64 for float64 scores).
    """
    parts = [_log_scores(scores, from_logits) for scores in (p_pred, q_pred)]
    (log_p, in_p), (log_q, in_q) = ((ops.log_softmax(scores, axis=-1), present) for scores, present in parts)
    present = ops.logical_and(in_p, in_q)
    terms = (ops.exp(log_p) - ops.exp(log_q)) * (log_p - log_q)
    return ops.sum(ops.where(present, terms, 0.0), axis=-1)


@keras.saving.register_keras_serializable(package="bert4x")
class RDropCrossentropy(keras.losses.Loss):
    """R-Drop: cross-entropy, and a penalty where two passes with different dropout masks disagree.

    L = mean over the 2B rows of CE + alpha / 4 mean over the B samples of (KL(p||q) + KL(q||p)), in nats.

    Rows 2k and 2k + 1 of a batch are the same sample: `bert4x.snippets.repeat_rows` makes such batches. For sequences
    use `bert4x.layers.SequenceCrossEntropy(rdrop_alpha=4)`.

    Args:
        alpha: weight of the penalty.
        from_logits: y_pred are scores, not probabilities.
        label_smoothing: as in `sequence_crossentropy`.
    Shapes: y_true int [2B] or [2B, 1], y_pred [2B, L].
    Raises: ValueError for an odd number of rows, where it is known before the model runs.
    Source: arXiv:2106.14448.
    """

    def __init__(self, alpha=4.0, from_logits=False, *, label_smoothing=0.0, name="rdrop_crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.alpha, self.from_logits, self.label_smoothing = alpha, from_logits, label_smoothing

    def call(self, y_true, y_pred):
        """Loss of each row; half of a pair's penalty is in each of its two rows' share of the mean."""
        if y_pred.shape[0] is not None and y_pred.shape[0] % 2:
            raise ValueError(
                f"R-Drop compares rows 2k and 2k + 1, so a batch needs an even number of them; got {y_pred.shape[0]}. "
                "Make the batches with bert4x.snippets.repeat_rows."
            )
        y_true = y_true[:, 0] if len(y_true.shape) == len(y_pred.shape) else y_true
        options = {"from_logits": self.from_logits}
        losses, _ = token_crossentropy(y_true, y_pred, label_smoothing=self.label_smoothing, **options)
        penalty = symmetric_divergence(y_pred[::2], y_pred[1::2], **options)
        return losses + self.alpha / 4 * ops.repeat(penalty, 2, axis=0)

    def get_config(self):
        """Arguments of the constructor."""
        own = {"alpha": self.alpha, "from_logits": self.from_logits, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


def _log_scores(y_pred, from_logits):
    """Scores whose softmax is the distribution, in float32 or better, -1e9 where absent, and which are present."""
    scores, present = _scores(y_pred)
    if from_logits:
        return ops.where(present, scores, _NEVER), present
    # The gradient below _SMALLEST is 0, as in Keras.
    return ops.log(ops.clip(scores, _SMALLEST, 1.0)), present


def _smoothing(ids, scores, present):
    """What smoothing by e adds to each token's cross-entropy, over e: mean of the scores taken from the right one.

    (1 - e) (lse - s_y) + e mean(lse - s) = (lse - s_y) + e (s_y - mean(s)).
    """
    right = ops.take_along_axis(scores, ops.expand_dims(ids, -1), axis=-1)[..., 0]
    count = ops.sum(ops.cast(present, scores.dtype), axis=-1)
    return right - ops.sum(ops.where(present, scores, 0.0), axis=-1) / ops.maximum(count, 1.0)


def _weights(mask, like):
    return ops.ones_like(like) if mask is None else ops.cast(mask, like.dtype)
