"""What adversarial training repeats in a step: passes of a model with moved embeddings, and procedures made of them."""

import contextlib
from dataclasses import dataclass

from bert4x.backend import keras, ops, runtime, search_layer, walk_layers
from bert4x.backend.scopes import first_output

_TINY = 1e-8
_RELATIVE = 0.3  # length of a perturbation, in rows of the table, where none is given


def embedding_layer(model, name):
    """The embedding layer called `name`, nested models included; ValueError if there is none."""
    layer = search_layer(model, name)
    if layer is None:
        names = [inner.name for inner in walk_layers(model) if _is_embedding(inner)]
        raise ValueError(f"name must be that of an embedding layer; got {name!r}. The model has {names}.")
    if not _is_embedding(layer):
        raise ValueError(f"name must be that of an embedding layer; {name!r} is a {type(layer).__name__}.")
    return layer


def _is_embedding(layer):
    return isinstance(layer, keras.layers.Embedding) or hasattr(layer, "embeddings_initializer")


@dataclass(frozen=True)
class Place:
    """Where a model is moved: the table of an embedding layer, or the vectors that its first call in a pass returns.

    Args:
        layer: embedding layer.
        target: "table" or "output".
    """

    layer: keras.Layer
    target: str = "table"

    def __post_init__(self):
        if self.target not in ("table", "output"):
            raise ValueError(f'target must be "table" or "output"; got {self.target!r}')

    @property
    def table(self):
        """The layer's variable; looked up late, since a subclassed model may build its layers in the first step."""
        return next(v for v in self.layer.weights if v.name == "embeddings")

    @contextlib.contextmanager
    def moved(self, model, delta, *, constant=False):
        """Run the model in the block moved by delta, None for not at all; with `constant` no weight has a gradient."""
        values = [(v, ops.stop_gradient(v.value)) for v in model.trainable_variables] if constant else []
        if self.target == "table" and delta is not None:
            table = self.table
            here = ops.stop_gradient(table.value) if constant else table.value
            values = [(v, value) for v, value in values if v is not table]
            values.append((table, here + ops.cast(delta, table.dtype)))
        change = contextlib.nullcontext()
        if self.target == "output" and delta is not None:
            change = first_output(self.layer, lambda output: output + ops.cast(delta, output.dtype))
        with runtime.overridden(values, model), change:
            yield

    def zeros(self, run):
        """A delta of zeros, float32; `run` makes a pass of the model, which tells the shape of an output."""
        if self.target == "table":
            return ops.zeros_like(self.table.value, dtype="float32")
        seen = []
        with first_output(self.layer, lambda output: seen.append(output) or output):
            run()
        return ops.zeros_like(seen[0], dtype="float32")

    def lengths(self, delta):
        """Euclidean length of the whole table, or of each sample's part, in a shape that delta can be divided by."""
        axes = tuple(range(0 if self.target == "table" else 1, len(delta.shape)))
        return ops.sqrt(ops.sum(delta**2, axis=axes, keepdims=True))


class Passes:
    """The passes of one training step: loss and outputs of a model on one batch, as functions of delta.

    Args:
        model: compiled model, in its training step.
        place: what delta moves.
        x, y, sample_weight: the batch.
    """

    def __init__(self, model, place, x, y, sample_weight):
        self.model, self.place = model, place
        self.x, self.y, self.sample_weight = x, y, sample_weight
        self._zeros = None

    def outputs(self, delta, *, training=True, constant=False):
        """The model's outputs."""
        with self.place.moved(self.model, delta, constant=constant):
            return self._call(training)

    def loss(self, delta, *, training=True, constant=False):
        """Total loss, those that layers and regularizers add included, and the outputs."""
        with self.place.moved(self.model, delta, constant=constant):
            outputs = self._call(training)
            loss = self.model._compute_loss(self.x, self.y, outputs, self.sample_weight, training=training)
        return loss, outputs

    def _call(self, training):
        return self.model(self.x, training=training) if self.model._call_has_training_arg else self.model(self.x)

    def gradient(self, delta, *, training=True, of=None):
        """Gradient for delta, as a constant; of the loss, or of a function of delta."""
        def scaled(delta):
            loss = self.loss(delta, training=training, constant=True)[0] if of is None else of(delta)
            return loss * scale

        scale = self._loss_scale()
        return runtime.value_and_grad(scaled, self._delta(delta), differentiable=False)[1] / scale

    def value_and_gradient(self, delta):
        """(loss, outputs) and the gradient for delta, all differentiable."""
        def scaled(delta):
            loss, outputs = self.loss(delta)
            return loss * scale, (loss, outputs)

        scale = self._loss_scale()
        (_, found), gradient = runtime.value_and_grad(scaled, self._delta(delta), has_aux=True)
        return found, gradient / scale

    def _loss_scale(self):
        # In float16 the gradient for delta would vanish as the others do. Read here: inside of a pass, JAX knows no
        # variable of the optimizer.
        return self.model.optimizer.scale_loss(ops.ones(()))

    def _delta(self, delta):
        return self.zeros() if delta is None else delta

    def zeros(self):
        """A delta of zeros."""
        if self._zeros is None:
            self._zeros = self.place.zeros(lambda: self.outputs(None, training=False, constant=True))
        return self._zeros

    def noise(self, seed):
        """A delta of normal noise, other noise in each optimizer step."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)  # float16 wraps it
        return runtime.standard_normal(ops.shape(self.zeros()), seed, optimizer.iterations.value)

    def unit(self, delta):
        """delta / (|delta| + 1e-8); zeros where the length is not finite."""
        lengths = self.place.lengths(delta)
        return ops.where(ops.isfinite(lengths), delta / (lengths + _TINY), 0.0)

    def ascended(self, delta, gradient, way):
        """delta after a step of length `way.step_size` along the gradient, shortened to `way.epsilon`."""
        limit = self.length(way.epsilon)
        step_size = limit if way.step_size is None else way.step_size
        delta = self._delta(delta) + step_size * self.unit(ops.stop_gradient(gradient))
        return delta * ops.minimum(1.0, limit / (self.place.lengths(delta) + _TINY))

    def length(self, epsilon):
        """epsilon; for None 0.3 times the mean length of the table's rows, as they are at this step."""
        if epsilon is not None:
            return epsilon
        rows = ops.cast(ops.stop_gradient(self.place.table.value), "float32")
        return _RELATIVE * ops.mean(ops.sqrt(ops.sum(rows**2, axis=-1)))


@dataclass(frozen=True)
class Ascent:
    """FGM and PGD: the loss at the end of the way up."""

    epsilon: float | None
    step_size: float | None
    steps: int
    mix: bool = False
    training: bool = True

    def loss(self, passes):
        """Loss and outputs."""
        delta = None
        for _ in range(self.steps):
            delta = passes.ascended(delta, passes.gradient(delta, training=self.training), self)
        loss, outputs = passes.loss(delta)
        return (loss + passes.loss(None)[0] if self.mix else loss), outputs


@dataclass(frozen=True)
class FreeLB:
    """The mean loss along the way up."""

    epsilon: float
    step_size: float
    steps: int
    seed: int

    def loss(self, passes):
        """Mean loss, and the outputs of the last pass."""
        delta, total, gradient = self.epsilon / 2 * passes.unit(passes.noise(self.seed)), 0.0, None
        for _ in range(self.steps):
            delta = delta if gradient is None else passes.ascended(delta, gradient, self)
            (loss, outputs), gradient = passes.value_and_gradient(delta)
            total = total + loss
        return total / self.steps, outputs


@dataclass(frozen=True)
class Penalty:
    """The loss and half its squared gradient."""

    weight: float

    def loss(self, passes):
        """Penalised loss and outputs."""
        (loss, outputs), gradient = passes.value_and_gradient(None)
        return loss + 0.5 * self.weight * ops.sum(gradient**2), outputs


@dataclass(frozen=True)
class VirtualAdversary:
    """The loss where there are labels, and how far a small move changes the prediction."""

    epsilon: float | None
    xi: float
    iterations: int
    weight: float
    from_logits: bool | None
    seed: int

    def loss(self, passes):
        """Loss and outputs; without labels the KL and the outputs of the moved model."""
        logits = self.from_logits
        if logits is None:
            logits = getattr(passes.model.loss, "from_logits", False)
        predicted = _log_probabilities(passes.outputs(None, training=False, constant=True), logits)
        predicted = ops.stop_gradient(predicted)
        delta = passes.length(self.epsilon) * passes.unit(self._direction(passes, predicted, logits))
        outputs = passes.outputs(delta)
        distance = _divergence(predicted, _log_probabilities(outputs, logits))
        if passes.y is None:
            return distance, outputs
        loss, outputs = passes.loss(None)
        return loss + self.weight * distance, outputs

    def _direction(self, passes, predicted, logits):
        def distance(delta):
            return _divergence(predicted, _log_probabilities(passes.outputs(delta, constant=True), logits))

        direction = self.start(passes)
        for _ in range(self.iterations):
            direction = passes.gradient(self.xi * passes.unit(direction), of=distance)
        return direction

    def start(self, passes):
        """The first direction; at 0 the KL has no gradient."""
        return passes.noise(self.seed)


def _log_probabilities(outputs, logits):
    if isinstance(outputs, (list, tuple, dict)) or outputs.shape[-1] == 1:
        raise ValueError(
            "virtual adversarial training needs one output of class probabilities or logits [B, ..., C], C > 1; "
            "got several outputs, or C = 1. Two classes need two columns."
        )
    outputs = ops.cast(outputs, "float32")
    return ops.log_softmax(outputs) if logits else ops.log(ops.maximum(outputs, 1e-30))


def _divergence(p, q):
    """Mean over the rows of KL(p || q), from log-probabilities."""
    return ops.mean(ops.sum(ops.exp(p) * (p - q), axis=-1))
