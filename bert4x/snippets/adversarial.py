"""Adversarial training in one line: FGM, PGD, FreeLB, gradient penalty, virtual adversarial training."""

from bert4x.backend import keras, runtime
from bert4x.snippets.perturbation import (
    Ascent,
    FreeLB,
    Passes,
    Penalty,
    Place,
    VirtualAdversary,
    embedding_layer,
)

# Each function below gives the model a class of its own: its class with another `train_step`. Nothing is stored on the
# model or changed in it, so it may be compiled before or after, saved, copied (the copy is the plain model) and set
# back. Keras writes `model.__class__` into files, which still names the plain class.
#
# `compute_loss` would be the smaller hook, but Keras calls it with outputs it has computed already: one forward pass
# more where nothing is compiled, and metrics of the pass that was not trained on.


def adversarial_training(model, name="Embedding-Token", epsilon=1.0, *, mix=False, training=True, target="table"):
    """Train on the embedding table moved against the model, the fast gradient method (FGM).

    delta = epsilon G / (|G| + 1e-8), G = dL/dE;  the loss of a step is L(E + delta), with delta constant

    One line before or after `compile`:  adversarial_training(model, "Embedding-Token", epsilon=0.5)

    The gradients of all weights are taken at E + delta and applied to the weights without it. Loss and metrics shown
    are those at E + delta; `evaluate` and `predict` are never perturbed. The two passes draw their own dropout masks,
    both from the seeds of the layers, so `set_seed` fixes them. Where G is not finite (float16), delta is 0. A frozen
    table is perturbed all the same. A second call, of this function or another one here, replaces the first.

    Args:
        model: any Keras model that keeps Keras' own `train_step`; its `compute_loss` may be its own.
        name: name of the embedding layer; nested models are searched too.
        epsilon: length of delta; None, a good start, means 0.3 times the mean length of E's rows. By position too,
            since the scripts for bert4keras gave it so.
        mix: train on L(E) + L(E + delta) instead.
        training: False takes G without dropout.
        target: "table" moves the whole table, one norm over all of it; "output" moves the vectors looked up, one norm
            for each sample.
    Returns: the model.
    Raises: ValueError for a layer that is not there (the embedding layers are listed) or a model with its own
        `train_step`.
    Source: arXiv:1605.07725.
    """
    return _install(model, name, target, Ascent(epsilon, epsilon, 1, mix=mix, training=training))


def projected_gradient_descent(
    model, name="Embedding-Token", *, epsilon=1.0, step_size=None, steps=3, training=True, target="table"
):
    """Like `adversarial_training`, with several steps to find delta (PGD).

    delta <- P(delta + step_size G / (|G| + 1e-8)), G = dL/dE at E + delta, from 0;  P shortens to length epsilon

    Args:
        epsilon: the largest length of delta, a number.
        step_size: length of one step; None means 2.5 epsilon / steps.
        steps: number of steps. A training step takes steps + 1 passes; one of length epsilon is FGM.
        model, name, training, target: as there.
    Returns: the model.
    Source: arXiv:1706.06083.
    """
    return _install(model, name, target, Ascent(epsilon, _size(step_size, epsilon, steps), steps, training=training))


def free_lb(model, name="Embedding-Token", *, epsilon=1.0, step_size=None, steps=3, seed=0, target="table"):
    """Train on the mean loss along the way of `projected_gradient_descent`, from a random start (FreeLB).

    loss = mean of L(E + delta_k), k = 1..steps;  delta_1 is random, no longer than epsilon / 2

    Args:
        seed: the start of a step depends on it and on the optimizer's step count only.
        model, name, epsilon, step_size, steps, target: as there; `steps` passes, each with two backward passes.
    Returns: the model.
    Source: arXiv:1909.11764.
    """
    return _install(model, name, target, FreeLB(epsilon, _size(step_size, epsilon, steps), steps, seed))


def gradient_penalty(model, name="Embedding-Token", *, weight=1.0, target="table"):
    """Add the squared gradient of the embedding table to the loss:  L + weight / 2 |dL/dE|^2.

    The gradient of the penalty needs second derivatives. Attention computes without fused kernels for it, but
    `fused_attention=True`, and on TensorFlow `remat`, are errors, and on TensorFlow keras.layers.LayerNormalization
    and BatchNormalization give silently wrong ones; the layers of bert4x are right.

    Args:
        weight: L is the mean over the batch, so a good one depends on the batch size.
        model, name, target: as in `adversarial_training`.
    Returns: the model.
    """
    return _install(model, name, target, Penalty(weight))


def virtual_adversarial_training(
    model,
    name="Embedding-Token",
    *,
    epsilon=1.0,
    xi=10.0,
    iterations=1,
    weight=1.0,
    from_logits=None,
    seed=0,
    target="table",
):
    """Add to the loss how far the prediction moves with the table, which needs no labels (VAT).

    d random normal;  `iterations` times d <- dKL(p || p(E + xi d / |d|))/dE
    loss = L + weight KL(p || p(E + epsilon d / |d|)),  p constant, predicted without dropout

    The KL is the mean over all rows of the batch, those without a label included: give these sample weight 0, or let
    `SemiSupervised` make such batches. Batches without y train on the KL alone, so that a second model of the same
    layers, compiled without a loss, can be trained on unlabelled data between the steps of the first:

        other = keras.Model(model.inputs, model.outputs)
        other.compile(Adam(1e-5))
        virtual_adversarial_training(other)
        other.train_on_batch(x)

    Args:
        epsilon, xi: length of the perturbation (None as there), and of the one at which its direction is found. 1 and
            10 suit tables of pretrained models; scale them with the length of E's rows.
        iterations: how often the direction is improved.
        from_logits: whether the model returns logits; None looks at the compiled loss.
        seed: d depends on it and on the optimizer's step count only.
        model, name, target: as in `adversarial_training`.
    Returns: the model.
    Source: arXiv:1704.03976.
    """
    return _install(model, name, target, VirtualAdversary(epsilon, xi, iterations, weight, from_logits, seed))


def plain_training(model):
    """Undo what a function of this module did to a model; a plain model stays as it is. Returns the model."""
    if isinstance(model, _Trained):
        _set_class(model, model.__class__)
        model.train_function = None
    return model


_set_class = object.__dict__["__class__"].__set__


class _Trained:
    """A model's class with another training step; `procedure` and `place` are attributes of the class."""

    @property
    def __class__(self):
        return type(self).__mro__[2]

    def train_step(self, *arguments):
        return runtime.train_step(self, self._adversarial_loss, *arguments)

    def _adversarial_loss(self, x, y, sample_weight):
        if not self.built:
            self(x)  # makes the variables, which the passes replace
        return self.procedure.loss(Passes(self, self.place, x, y, sample_weight))


def _install(model, name, target, procedure):
    if not isinstance(model, keras.Model):
        raise TypeError(f"adversarial training needs a Keras model; got {type(model).__name__}")
    base = model.__class__
    if base.train_step is not keras.Model.train_step:
        raise ValueError(
            f"adversarial training replaces `train_step`; {base.__name__} has its own. Override compute_loss instead."
        )
    place = Place(embedding_layer(model, name), target)
    plain_training(model)
    _set_class(model, type(base.__name__, (_Trained, base), {"procedure": procedure, "place": place}))
    model.train_function = None  # what an earlier `fit` has compiled
    return model


def _size(step_size, epsilon, steps):
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if epsilon is None:
        raise ValueError("epsilon=None is for adversarial_training and virtual_adversarial_training; give a number.")
    return 2.5 * epsilon / steps if step_size is None else step_size
