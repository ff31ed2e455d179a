"""Losses as layers: what is compared are inputs of the layer, so that any tensors of a model may be."""

from bert4x.backend import (
    keras,
    ops,
    scopes,
    sequence_accuracy,
    symmetric_divergence,
    token_crossentropy,
    weighted_mean,
)
from bert4x.layers.base import Layer, register


class _Shown:
    """The metrics of a layer by name; in an object of its own, as Keras would take those in a dict for its own."""

    def __init__(self):
        self.means = {}


class _Mean(keras.metrics.Metric):
    """A mean whose sum and number of values are variables of a layer."""

    def __init__(self, name, total, count):
        super().__init__(name=name)
        self.parts = lambda: (total, count)  # a function, so that Keras does not take them for the metric's own

    def result(self):
        """The mean, or NaN inside JAX's training step, where the layer's variables are out of reach."""
        total, count = (scopes.value_or_none(part) for part in self.parts())
        return float("nan") if total is None else total / ops.maximum(count, 1.0)

    def reset_state(self):
        """Begin anew."""
        for part in self.parts():
            part.assign(0.0)


@register
class Loss(Layer):
    """Base of layers that add a loss to the model they are in, and hand (some of) their inputs on unchanged.

    Subclass it and define `compute_loss(inputs, mask)`, which returns a scalar; compile the model without a loss::

        class CrossEntropy(Loss):
            def compute_loss(self, inputs, mask=None):
                y_true, y_mask, y_pred = inputs
                ...
                self.add_metric(accuracy, name="accuracy")
                return loss

        y_pred = CrossEntropy(2)([y_true, y_mask, y_pred])

    Inputs are never cast: labels keep their type under mixed precision, too.

    Args:
        output_axis: which inputs are returned: None for all, a number for one, a list of numbers for several.
    Masks: `mask` is that of the inputs, in their structure; each output has the mask of the input that it is.
    Raises: ValueError if there is no input of that number.
    """

    def __init__(self, output_axis=None, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False
        self.output_axis = output_axis
        self._shown = _Shown()

    def compute_loss(self, inputs, mask=None):
        """The loss, a scalar tensor, of the layer's inputs and their masks."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss(self, inputs, mask=None)")

    def add_metric(self, value, name=None, aggregation="mean"):
        """Show a scalar tensor beside the loss, as its mean over the batches; called in `compute_loss`.

        On JAX the mean is known at the end of an epoch; until then the progress bar shows NaN.

        Args:
            name: in the progress bar and the logs; the layer's name if absent.
            aggregation: "mean", the only one; Keras 2 took it.
        """
        if aggregation not in ("mean", None):
            raise ValueError(f"add_metric takes the mean over the batches; got aggregation={aggregation!r}")
        total, count = self._running_mean(name or self.name)
        total.assign(total.value + ops.stop_gradient(ops.cast(value, "float32")))
        count.assign(count.value + 1.0)

    def _running_mean(self, name):
        """Sum and number of the values, as variables of the layer."""
        # Not a metric's variables: JAX's training step does not hand those to the layers.
        if name not in self._shown.means:
            # The names are known when the graph is built and runs for the first time, and the layer is built by then.
            locked = self._tracker.locked
            self._tracker.unlock()
            options = {"shape": (), "initializer": "zeros", "dtype": "float32", "trainable": False, "autocast": False}
            parts = [self.add_weight(name=f"{name}_{part}", **options) for part in ("total", "count")]
            self._shown.means[name] = _Mean(name, *parts)
            if locked:
                self._lock_state()
        return self._shown.means[name].parts()

    @property
    def metrics(self):
        """What `add_metric` was given, for the training loop."""
        return [*super().metrics, *self._shown.means.values()]

    def call(self, inputs, mask=None):
        self.add_loss(self.compute_loss(inputs, mask))
        return self._chosen(inputs)

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else self._chosen(mask)

    def _chosen(self, values):
        if self.output_axis is None:
            return values
        values = values if isinstance(values, (list, tuple)) else [values]
        several = isinstance(self.output_axis, (list, tuple))
        wanted = self.output_axis if several else [self.output_axis]
        if any(not -len(values) <= axis < len(values) for axis in wanted):
            raise ValueError(f"output_axis must name inputs 0 to {len(values) - 1}; got {self.output_axis}")
        return [values[axis] for axis in wanted] if several else values[self.output_axis]

    def get_config(self):
        return {**super().get_config(), "output_axis": self.output_axis}


@register
class SequenceCrossEntropy(Loss):
    """Cross-entropy of a language model, UniLM or sequence-to-sequence model: score t is of token t + 1.

    L = sum(w CE) / sum(w) over the whole batch, in nats per token; the metric `accuracy` likewise. Several scores (of
    several passes over the same tokens) are weighted: L = sum_i lambda_i L_i; the metric is that of the first.

    Args:
        output_axis: which inputs are returned; the first scores by default.
        weighted: inputs are [ids, weights, scores ...], not [ids, scores ...]. The weights are those of the tokens:
            UniLM's segment ids, or 1 for what is not padding.
        factors: lambda_i, one for each scores.
        shift: compare score t with token t + 1; False: with token t, as for a masked language model.
        from_logits: the scores are raw, not probabilities.
        label_smoothing: in [0, 1).
        rdrop_alpha: rows 2k and 2k + 1 are the same sample (`bert4x.snippets.repeat_rows`); adds alpha / 4 times the
            mean over the tokens of KL(p||q) + KL(q||p) of the first scores.
    Shapes: ids int [B, T], weights [B, T], scores [B, T, V].
    Masks: a token counts unless the mask of the ids, or that of the scores, excludes it.
    Source: arXiv:2106.14448 (R-Drop).
    """

    def __init__(
        self, output_axis=None, *, weighted=False, factors=(1.0,), shift=True, from_logits=False, label_smoothing=0.0,
        rdrop_alpha=None, **kwargs,
    ):
        self.weighted, self.factors, self.shift = weighted, list(factors), shift
        self.from_logits, self.label_smoothing, self.rdrop_alpha = from_logits, label_smoothing, rdrop_alpha
        super().__init__(self._first if output_axis is None else output_axis, **kwargs)

    @property
    def _first(self):
        """Number of the first scores among the inputs."""
        return 2 if self.weighted else 1

    def compute_loss(self, inputs, mask=None):
        if len(inputs) != self._first + len(self.factors):
            names = "ids, weights, scores" if self.weighted else "ids, scores"
            raise ValueError(
                f"SequenceCrossEntropy needs [{names}], with {len(self.factors)} scores; got {len(inputs)} inputs"
            )
        ids, scores = inputs[0], inputs[self._first :]
        weights = inputs[1] if self.weighted else None
        for m in (mask[0], mask[self._first]) if mask is not None else ():
            if m is not None:
                m = ops.cast(m, "float32")
                weights = m if weights is None else ops.cast(weights, "float32") * m
        if self.shift:
            ids, scores = ids[:, 1:], [s[:, :-1] for s in scores]
            weights = None if weights is None else weights[:, 1:]
        return self._total(ids, scores, weights)

    def _total(self, ids, scores, weights):
        options = {"from_logits": self.from_logits}
        total, first_weights = 0.0, None
        for number, (factor, one) in enumerate(zip(self.factors, scores, strict=True), 1):
            losses, counted = token_crossentropy(ids, one, weights, label_smoothing=self.label_smoothing, **options)
            loss = weighted_mean(losses, counted)
            total = total + factor * loss
            first_weights = counted if first_weights is None else first_weights
            if len(scores) > 1:
                self.add_metric(loss, name=f"loss_{number}")
        self.add_metric(sequence_accuracy(ids, scores[0], first_weights), name="accuracy")
        if self.rdrop_alpha:
            divergence = symmetric_divergence(scores[0][::2], scores[0][1::2], **options)
            total = total + self.rdrop_alpha / 4 * weighted_mean(divergence, first_weights[::2])
        return total

    def get_config(self):
        names = ("weighted", "factors", "shift", "from_logits", "label_smoothing", "rdrop_alpha")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
