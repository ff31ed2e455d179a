"""Batches of labelled and unlabelled records, for training that learns from both."""

import numpy as np

from bert4x.snippets.batch import standard_batch
from bert4x.snippets.data import DataGenerator


class SemiSupervised(DataGenerator):
    """Each batch of a generator of unlabelled records with one of labelled records before it.

    A pass is one of the unlabelled records; the labelled ones start again as often as needed. The batch is (x, y, w):
    rows of x one after the other, padded with zeros at the end to the longer length; y of an unlabelled row is 0; w is
    0 there and (n + m) / n for n labelled among m others, so that the loss is the mean over the labelled rows. Show
    scores with `weighted_metrics`, which leave the others out, as `metrics` do not:

        virtual_adversarial_training(model)
        model.compile(optimizer, loss, weighted_metrics=["accuracy"])
        batches = SemiSupervised(labeled, unlabeled)
        model.fit(batches.forfit(), steps_per_epoch=len(batches))

    Args:
        labeled: DataGenerator of batches (x, y) or (x, y, w).
        unlabeled: DataGenerator of batches (x,), or of (x, y) whose y is not used.
        seed: the order of pass p is a function of (seed, p).
    """

    def __init__(self, labeled, unlabeled, *, seed=0):
        super().__init__(unlabeled.data, unlabeled.batch_size, seed=seed, steps=unlabeled.steps)
        self.labeled, self.unlabeled = labeled, unlabeled

    def __iter__(self, random=False):
        """Yield the batches of one pass."""
        labeled = self._repeated(random)
        for batch in self.unlabeled.__iter__(random):
            yield joined(next(labeled), batch)

    def _repeated(self, random):
        while True:
            yield from self.labeled.__iter__(random)


def joined(labeled, unlabeled):
    """The batch (x, y, w) of both, as `SemiSupervised` describes it."""
    (x, y, *weights), (other, *_) = standard_batch(labeled), standard_batch(unlabeled)
    both = _map(_concatenated, x, other)
    rows, others = len(_first(x)), len(_first(other))
    weights = weights[0] if weights else np.ones(rows, "float32")
    weights = np.concatenate([weights * np.float32((rows + others) / rows), np.zeros(others, "float32")])
    return both, _map(lambda a: np.concatenate([a, np.zeros((others, *a.shape[1:]), a.dtype)]), y), weights


def _map(function, x, *others):
    """A function of the arrays at the same place of one or two structures."""
    if isinstance(x, dict):
        return {key: _map(function, value, *(other[key] for other in others)) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(_map(function, *values) for values in zip(x, *others, strict=True))
    return function(x, *others)


def _first(x):
    while not isinstance(x, np.ndarray):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    return x


def _concatenated(a, b):
    shape = np.maximum(a.shape[1:], b.shape[1:])
    return np.concatenate([_padded(a, shape), _padded(b, shape)])


def _padded(array, shape):
    return np.pad(array, [(0, 0), *((0, new - old) for new, old in zip(shape, array.shape[1:], strict=True))])
