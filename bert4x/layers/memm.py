"""The maximum entropy Markov model: labels one after another, each with a softmax of its own."""

from bert4x.backend import ops
from bert4x.backend.chains import neighbours
from bert4x.layers.base import register
from bert4x.layers.crf import ChainLayer

_LEAST = 1e-30  # as in backend/chains.py


@register
class MaximumEntropyMarkovModel(ChainLayer):
    """Bidirectional MEMM: like a CRF, with a softmax at each step instead of a sum over all paths.

    forward:   P(y_1) = softmax(h_1),  P(y_t | y_(t-1)) = softmax_j(h_t[j] + A[y_(t-1), j])
    backward:  Q(y_n) = softmax(h_n),  Q(y_t | y_(t+1)) = softmax_i(h_t[i] + A[i, y_(t+1)])
    loss = (mean over the tokens of -log P + mean of -log Q) / 2, in nats per token, a scalar

    Nothing in training runs step by step. Used as `ConditionalRandomField` is.

    Args:
        lr_multiplier: how much faster than the other weights A moves.
        hidden_dim: rank d of A = left right'; None: a full A. In training A is never formed, so that L may be large.
        halve: softmax(half of the sum) at each step but the first of a direction, as in bert4keras; for its weights.
    Decoding: mode="viterbi" finds the path of the highest sum of h and A, as a CRF does and as bert4keras' examples do.
        `direction="forward"`, `"backward"` or `"both"` (their average) makes it the most probable path instead, and
        its score the log-probability. These paths may differ.
    Metrics, masks, shapes: as in `ConditionalRandomField`.
    Source: McCallum, Freitag, Pereira, ICML 2000; kexue.fm archives 7213.
    """

    def __init__(self, lr_multiplier=1, hidden_dim=None, *, halve=False, **kwargs):
        super().__init__(lr_multiplier, **kwargs)
        self.hidden_dim, self.halve = hidden_dim, halve

    def build(self, input_shape):
        width = input_shape[-1]
        if self.hidden_dim is None:
            self._trans = self.add_transitions("trans", (width, width))
        else:
            self._left, self._right = (self.add_transitions(n, (width, self.hidden_dim)) for n in ("left", "right"))

    @property
    def trans(self):
        if self.hidden_dim is None:
            return self.effective(self._trans)
        return ops.matmul(self.effective(self._left), ops.transpose(self.effective(self._right)))

    def _rows(self, labels, *, backward):
        """A[y, :], or A[:, y] if backward, for labels [B, T]: [B, T, L]."""
        if self.hidden_dim is None:
            trans = self.trans
            return ops.take(ops.transpose(trans) if backward else trans, labels, axis=0)
        left, right = self.effective(self._left), self.effective(self._right)
        left, right = (right, left) if backward else (left, right)
        return ops.matmul(ops.take(left, labels, axis=0), ops.transpose(right))

    def sparse_loss(self, y_true, y_pred):
        scores, mask = self.scores_and_mask(y_pred)
        labels = ops.where(mask, self.ids(y_true), 0)
        real = ops.cast(mask, "float32")
        before, after = (ops.expand_dims(ops.cast(m, "float32"), -1) for m in neighbours(mask))
        # The first token is on its own forwards, the last real one backwards.
        forward = self._rows(ops.roll(labels, 1, axis=1), backward=False) * before
        backward = self._rows(ops.roll(labels, -1, axis=1), backward=True) * after
        shares = (1 - 0.5 * before, 1 - 0.5 * after) if self.halve else (1, 1)
        normalizers = sum(
            ops.logsumexp((scores + moved) * share, axis=-1)
            for moved, share in zip((forward, backward), shares, strict=True)
        )
        # What the labels themselves score. Both directions have the same transitions, though at neighbouring steps.
        right = scores * sum(shares) + forward * (1 if self.halve else 2)
        chosen = ops.expand_dims(labels, -1) == ops.arange(right.shape[-1])  # XLA fuses a sum, not a gather
        right = ops.sum(ops.where(chosen, right, 0.0), axis=-1)
        return 0.5 * ops.sum((normalizers - right) * real) / ops.maximum(ops.sum(real), 1.0)

    def call(self, inputs, mask=None, mode="scores", count=None, direction=None):
        if direction is None:
            return super().call(inputs, mask=mask, mode=mode, count=count)
        scores, mask = self.scores_and_mask(inputs, mask)
        return super().call(self.local_scores(scores, mask, direction), mask=mask, mode=mode, count=count)

    def compute_output_spec(self, inputs, mask=None, mode="scores", count=None, direction=None):
        return super().compute_output_spec(inputs, mask=mask, mode=mode, count=count)

    def local_scores(self, scores, mask, direction):
        """Scores whose best path under A is the most probable one of a direction, with log-probability as its score.

        The normaliser of a step, log sum_j exp(h_t[j] + A[i, j]), depends on the label before, so it can be subtracted
        from that label's score; backwards from that of the label after.

        Args:
            scores, mask: float [B, T, L], bool [B, T].
            direction: forward, backward or both (the average).
        """
        if direction not in ("forward", "backward", "both"):
            raise ValueError(f"direction must be forward, backward, both or None; got {direction!r}")
        if self.halve:
            raise ValueError("halve=True has no decoding by a direction; use direction=None")
        parts = []
        if direction != "backward":
            parts.append(self._without_normalizers(scores, mask, self.trans))
        if direction != "forward":
            # The same on the mirrored chain. Padding, now in front, has no label before the first real one.
            mirrored = self._without_normalizers(ops.flip(scores, 1), ops.flip(mask, 1), ops.transpose(self.trans))
            parts.append(ops.flip(mirrored, 1))
        return sum(parts) / len(parts)

    @staticmethod
    def _without_normalizers(scores, mask, trans):
        """h_t[i] - log sum_j exp(h_(t+1)[j] + A[i, j]), and at the first real step - log sum_j exp(h[j]) too."""
        top, highest = ops.max(scores, axis=-1, keepdims=True), ops.max(trans)
        sums = ops.matmul(ops.exp(scores - top), ops.transpose(ops.exp(trans - highest)))
        normalizers = ops.log(ops.maximum(sums, _LEAST)) + top + highest
        before, after = (ops.expand_dims(ops.logical_and(mask, m), -1) for m in neighbours(mask))
        later = ops.where(after, ops.roll(normalizers, -1, axis=1), 0.0)
        first = ops.logical_and(mask[..., None], ops.logical_not(before))
        return scores - later - ops.where(first, ops.logsumexp(scores, axis=-1, keepdims=True), 0.0)

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim, "halve": self.halve}
