"""The linear-chain conditional random field, and what it shares with the maximum entropy Markov model."""

from bert4x.backend import combine_masks, keras, masked_logit, ops, scopes
from bert4x.backend.chains import best_paths, log_partition, neighbours, path_scores
from bert4x.backend.tensors import ABSENT
from bert4x.layers.base import Layer, register


class ChainLayer(Layer):
    """Base of layers over scores of labels [B, T, L] whose weights are transitions between neighbouring labels.

    The weights W are stored as W / lr_multiplier: an optimizer like Adam then moves them lr_multiplier times faster
    than the rest of the model. Changing it for saved weights changes the model.

    Call: `layer(scores)` returns the scores; `layer(scores, mode="viterbi")` the best path, int32 [B, T], 0 where
        masked; with `count=K` [paths int32 [B, K, T], their scores [B, K]], best first.
    Masks: right padding only. A padded step leaves the layer with the score -1e9 (float16: -3e4) for all labels, which
        is how losses, metrics and decoders know it. No mask is passed on: Keras would weight the losses of rows by it.
    """

    def __init__(self, lr_multiplier=1, **kwargs):
        super().__init__(**kwargs)
        self.lr_multiplier = lr_multiplier

    def add_transitions(self, name, shape):
        """A weight, Glorot uniform, stored divided by `lr_multiplier`."""
        draw = keras.initializers.get("glorot_uniform")

        def initializer(shape, dtype):
            return draw(shape, dtype) / self.lr_multiplier

        # No autocast: sums over paths are float32 under mixed precision.
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

    def effective(self, weight):
        """A weight as it is used, float32."""
        return ops.cast(weight, "float32") * self.lr_multiplier

    @property
    def trans(self):
        """The transitions A [L, L] as they are used: A[i, j] from label i to label j."""
        raise NotImplementedError(f"{type(self).__name__} must define trans")

    def sparse_loss(self, y_true, y_pred):
        """Loss for labels as ids: int [B, T], or [B, T, 1]; arbitrary where padded."""
        raise NotImplementedError(f"{type(self).__name__} must define sparse_loss")

    def dense_loss(self, y_true, y_pred):
        """The loss for one-hot labels [B, T, L]."""
        return self.sparse_loss(ops.argmax(y_true, axis=-1), y_pred)

    def sparse_accuracy(self, y_true, y_pred):
        """Share of the tokens whose label has the highest score: quick and rough, as it ignores the transitions."""
        _, mask = self.scores_and_mask(y_pred)
        return _share(ops.argmax(y_pred, axis=-1), self.ids(y_true), mask)

    def dense_accuracy(self, y_true, y_pred):
        """`sparse_accuracy` for one-hot labels."""
        return self.sparse_accuracy(ops.argmax(y_true, axis=-1), y_pred)

    def viterbi_accuracy(self, y_true, y_pred):
        """Share of the tokens that are right on the best path. Of JAX's `fit` and `evaluate` it is NaN."""
        _, mask = self.scores_and_mask(y_pred)
        return self._known(lambda: _share(self._paths(y_pred), self.ids(y_true), mask))

    def sequence_accuracy(self, y_true, y_pred):
        """Which rows are right as a whole on the best path, 0 or 1, [B]. Of JAX's `fit` and `evaluate` it is NaN."""
        _, mask = self.scores_and_mask(y_pred)

        def right():
            same = self._paths(y_pred) == self.ids(y_true)
            return ops.cast(ops.all(ops.logical_or(same, ops.logical_not(mask)), axis=1), "float32")

        return self._known(right)

    def _known(self, function):
        # JAX's step computes metrics where the weights are out of reach; it would take those of the first step.
        return function() if scopes.value_or_none(self.weights[0]) is not None else ops.convert_to_tensor(float("nan"))

    def _paths(self, y_pred):
        return self.best(y_pred)[0][:, 0]

    @staticmethod
    def ids(y_true):
        """Labels as int32 [B, T]."""
        y_true = y_true[..., 0] if len(y_true.shape) == 3 else y_true
        return ops.cast(y_true, "int32")

    @staticmethod
    def scores_and_mask(y_pred, mask=None):
        """Scores in float32, 0 where padded, and the mask bool [B, T].

        A step is padded if the mask says so, or if each of its scores is at or below -1e4.
        """
        scores = ops.cast(y_pred, "float32")
        mask = combine_masks(ops.any(scores > ABSENT, axis=-1), None if mask is None else ops.cast(mask, "bool"))
        return ops.where(ops.expand_dims(mask, -1), ops.maximum(scores, masked_logit("float32")), 0.0), mask

    def best(self, y_pred, mask=None, count=1):
        """The best paths int32 [B, count, T] and their scores [B, count]."""
        scores, mask = self.scores_and_mask(y_pred, mask)
        return best_paths(scores, self.trans, mask, count)

    def call(self, inputs, mask=None, mode="scores", count=None):
        self._check(mode, count)
        if mode == "viterbi":
            paths, scores = self.best(inputs, mask, count or 1)
            return paths[:, 0] if count is None else [paths, scores]
        if mask is None:
            return inputs
        padding = ops.cast(masked_logit(inputs.dtype), inputs.dtype)
        return ops.where(ops.expand_dims(ops.cast(mask, "bool"), -1), inputs, padding)

    @staticmethod
    def _check(mode, count):
        if mode not in ("scores", "viterbi"):
            raise ValueError(f"mode must be 'scores' or 'viterbi'; got {mode!r}")
        if count is not None and (mode != "viterbi" or count < 1):
            raise ValueError(f"count is the number of best paths, >= 1, with mode='viterbi'; got {count}, {mode!r}")

    def compute_mask(self, inputs, mask=None, **kwargs):
        return None

    def compute_output_spec(self, inputs, mask=None, mode="scores", count=None):
        self._check(mode, count)
        batch, length = inputs.shape[:2]
        if mode == "scores":
            return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if count is None:
            return keras.KerasTensor((batch, length), dtype="int32")
        paths = keras.KerasTensor((batch, count, length), dtype="int32")
        return [paths, keras.KerasTensor((batch, count), dtype="float32")]

    def get_config(self):
        return {**super().get_config(), "lr_multiplier": self.lr_multiplier}


@register
class ConditionalRandomField(ChainLayer):
    """Linear-chain CRF: a distribution over whole sequences of labels.

    score(y) = sum_t h_t[y_t] + sum_(t > 1) A[y_(t-1), y_t];  loss = log sum_y' exp(score(y')) - score(y)

    The layer returns the scores h; compile the model with its loss::

        crf = ConditionalRandomField(lr_multiplier=1000)
        model = Model(bert.inputs, crf(Dense(num_labels)(bert.output)))
        model.compile(optimizer, loss=crf.sparse_loss, metrics=[crf.sparse_accuracy])
        decoder = Model(model.inputs, crf(model.output, mode="viterbi"))

    Args:
        lr_multiplier: how much faster than the other weights A moves; with a pretrained encoder and a rate of 1e-5,
            100 to 1000.
        use_boundaries: learn scores of the first and the last label too.
    Losses: `sparse_loss` and `dense_loss`, in nats per row [B], float32; exact unless transitions differ by more than
        60 nats (worse ones count as one of -69). A row without any token has the loss 0, a row with a hole in its mask
        NaN.
    Metrics: `sparse_accuracy`, `dense_accuracy`, `viterbi_accuracy`, `sequence_accuracy`.
    Shapes: [B, T, L] -> [B, T, L]; call and masks as in `ChainLayer`.
    Source: Lafferty, McCallum, Pereira, ICML 2001; kexue.fm archives 5542 and 7196.
    """

    def __init__(self, lr_multiplier=1, *, use_boundaries=False, **kwargs):
        super().__init__(lr_multiplier, **kwargs)
        self.use_boundaries = use_boundaries

    def build(self, input_shape):
        width = input_shape[-1]
        self._trans = self.add_transitions("trans", (width, width))
        if self.use_boundaries:
            self._start, self._end = (self.add_transitions(name, (1, width)) for name in ("start", "end"))

    @property
    def trans(self):
        return self.effective(self._trans)

    def sparse_loss(self, y_true, y_pred):
        scores, mask = self.scores_and_mask(y_pred)
        total = log_partition(scores, self.trans, mask)
        loss = total - path_scores(scores, self.trans, self.ids(y_true), mask)
        holes = ops.any(ops.logical_and(mask[:, 1:], ops.logical_not(mask[:, :-1])), axis=1)
        return ops.where(holes, float("nan"), loss)

    def scores_and_mask(self, y_pred, mask=None):
        scores, mask = super().scores_and_mask(y_pred, mask)
        if self.use_boundaries:
            for weight, neighbour in zip((self._start, self._end), neighbours(mask), strict=True):
                outermost = ops.logical_and(mask, ops.logical_not(neighbour))
                scores = scores + ops.where(ops.expand_dims(outermost, -1), self.effective(weight), 0.0)
        return scores, mask

    def get_config(self):
        return {**super().get_config(), "use_boundaries": self.use_boundaries}


def _share(given, wanted, mask):
    """Share of the steps that count where two sets of labels [B, T] agree."""
    real = ops.cast(mask, "float32")
    same = ops.cast(ops.cast(given, "int32") == wanted, "float32")
    return ops.sum(same * real) / ops.maximum(ops.sum(real), 1.0)
