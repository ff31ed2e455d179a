"""Batches of training data as nested tuples of NumPy arrays: one form for what users yield."""

import numpy as np
from keras import tree


def as_tuples(batch):
    """A batch in the form (x,), (x, y) or (x, y, w) of arrays; lists become tuples, None at the end goes.

    Args:
        batch: list or tuple of x, y, w; each an array, None, or a list, tuple or dict of these.
    Raises: TypeError if it is something else, ValueError if it has more than three parts or no x.
    """
    if not isinstance(batch, (list, tuple)):
        raise TypeError(f"a batch must be a tuple (x,), (x, y) or (x, y, w); got {type(batch).__name__}")
    parts = [_arrays(part) for part in batch]
    while parts and parts[-1] is None:
        parts.pop()
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"a batch must be (x,), (x, y) or (x, y, w); got {len(batch)} parts. Group inputs as ([a, b], y)."
        )
    return tuple(parts)


def _arrays(x):
    if isinstance(x, dict):
        return {key: _arrays(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return tuple(_arrays(value) for value in x)
    return None if x is None else np.asarray(x)


def conform(batch, example):
    """Bring a batch to the form of `as_tuples` and to the dtypes of an example that has this form.

    Raises: ValueError for another structure or rank, TypeError for a cast from float to int.
    """
    batch = as_tuples(batch)
    arrays, models = tree.flatten_with_path(batch), tree.flatten_with_path(example)
    ranks, expected = _ranks(arrays), _ranks(models)
    if ranks != expected:
        raise ValueError(
            "all batches must have the structure of the first; as {place: rank} the first is "
            f"{expected}, got {ranks}"
        )
    cast = [_cast(array, model) for (_, array), (_, model) in zip(arrays, models, strict=True)]
    return tree.pack_sequence_as(example, cast)


def _cast(array, model):
    return array if array is None else array.astype(model.dtype, casting="same_kind", copy=False)


def _ranks(arrays):
    return {path: None if array is None else array.ndim for path, array in arrays}
