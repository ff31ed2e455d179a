"""What a data generator yields, brought to the types that every backend takes, and checked on the host."""

import numpy as np

from bert4x.snippets.padding import sequence_padding


def standard_batch(batch, vocab_size=None):
    """Return a user's batch as a tuple (x,), (x, y) or (x, y, w) of arrays in nested tuples and dicts.

    Lists of arrays become tuples, lists of numbers arrays; int64 becomes int32 and float64 float32, as the
    models compute in these and a batch of another type would compile the training step again.

    Args:
        batch: array, dict, or list or tuple (x, y, w) whose parts are arrays, None, or structures of arrays.
        vocab_size: if given, the token ids must be in [0, vocab_size): the first array of x or, in a dict,
            the one whose name ends in "Input-Token".
    Raises:
        ValueError for ids out of range, integers beyond int32, or ragged lists.
    """
    parts = batch if isinstance(batch, (list, tuple)) else (batch,)
    parts = tuple(_standard(part) for part in parts)
    while parts and parts[-1] is None:
        parts = parts[:-1]
    if vocab_size is not None:
        _check_ids(_token_ids(parts[0]), vocab_size)
    return parts


def _standard(x):
    if x is None:
        return None
    if isinstance(x, dict):
        return {key: _standard(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and _holds_arrays(x):
        return tuple(_standard(value) for value in x)
    try:
        return _narrow(np.asarray(x))
    except ValueError as error:
        raise ValueError(
            f"every part of a batch must be an array or a list of equally long rows; got {type(x).__name__} "
            f"({error}). Use sequence_padding for sequences of different lengths."
        ) from error


def _holds_arrays(x):
    """Tell a structure of arrays from a list of numbers."""
    return any(
        value is None or isinstance(value, (dict, np.ndarray))
        or isinstance(value, (list, tuple)) and _holds_arrays(value)
        or hasattr(value, "__array__") and np.ndim(value) > 0
        for value in x
    )


def _narrow(array):
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype in (np.int64, np.uint64, np.uint32):
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(f"integers must fit into int32; got values from {array.min()} to {array.max()}")
        return array.astype(np.int32)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"numbers are needed; got an array of type {array.dtype}")
    return array


def _token_ids(x):
    """Return the array of token ids among the inputs."""
    if isinstance(x, dict):
        named = [value for key, value in x.items() if str(key).endswith("Input-Token")]
        x = named or list(x.values())
    while isinstance(x, (list, tuple)):
        x = x[0]
    return x


def _check_ids(ids, vocab_size):
    if ids.dtype.kind not in "iu":
        raise ValueError(
            f"with vocab_size= the first input must hold integer token ids; got type {ids.dtype}. "
            "Put the token ids first, or leave vocab_size=None."
        )
    wrong = np.argwhere((ids < 0) | (ids >= vocab_size))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"token ids must be in [0, {vocab_size}); got {ids[place]} at position {place} of a batch of "
            f"shape {ids.shape} ({len(wrong)} such ids). Do the vocabulary and the model belong together?"
        )


def stacked(records, types, shapes, padded):
    """Return single records as one batch in the structure of `types`.

    Args:
        records: list of records.
        types, shapes: as in `DataGenerator.to_dataset`.
        padded: pad with zeros along the axes that `shapes` names, to their length or, for None, to the
            longest.
    """
    if isinstance(types, (list, tuple)):
        return tuple(
            stacked([record[i] for record in records], types[i], shapes[i], padded) for i in range(len(types))
        )
    pad = padded and len(shapes) > 0
    array = sequence_padding(records, list(shapes), seq_dims=len(shapes)) if pad else np.stack(records)
    return array.astype(getattr(types, "as_numpy_dtype", types))  # TensorFlow's types carry NumPy's


def named(names, batch):
    """Return a batch as dict: {name: array}, {names: arrays}, or a tuple of such dicts; as it is for None."""
    if names is None:
        return batch
    if isinstance(names, str):
        return {names: batch}
    if isinstance(names[0], str):
        return dict(zip(names, batch, strict=True))
    return tuple(dict(zip(keys, part, strict=True)) for keys, part in zip(names, batch, strict=True))


def with_single_columns(dataset, example):
    """Tell a tf.data.Dataset that axes of size 1 in targets and weights stay so; leave other data.

    Its axes are all open, but the losses treat labels of shape [B, 1] differently from [B, T].
    """
    if not hasattr(dataset, "element_spec"):
        return dataset
    from bert4x.backend import keras, ops

    def close(target, array):
        if array is None or array.ndim < 2 or 1 not in array.shape[1:]:
            return target
        sizes = ops.shape(target)
        return ops.reshape(target, [1 if i and n == 1 else sizes[i] for i, n in enumerate(array.shape)])

    return dataset.map(lambda x, *targets: (x, *keras.tree.map_structure(close, targets, example[1:])))
