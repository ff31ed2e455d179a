"""`predict_batched`: a model over many ragged records, in few compiled shapes."""

import numpy as np

from bert4x.snippets.padding import bucket_length, sequence_padding

# Two lengths per octave: at most a third of a batch is padding, and 512 tokens need eleven shapes.
BUCKETS = tuple(2**n * half // 2 for n in range(4, 18) for half in (2, 3))  # 16, 24, 32, 48 ... 131072, 196608


def bucket(length, buckets=BUCKETS):
    """The padded length for this length: one of few; what is longer than all of them stays as it is."""
    return max(bucket_length([length], buckets), length)


def power_of_two(count):
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def predict_batched(
    model, inputs, batch_size=32, *, max_length=None, buckets=BUCKETS, sequence_axes=None, padding=0
):
    """Run a model on records of unequal length and return the results in their order, without padding.

    Records are sorted by length and padded to the lengths in `buckets`; the last batch is filled up to a
    power of two. So there are at most len(buckets) * (1 + log2(batch_size)) shapes, each compiled at most
    once per model.

    Args:
        model: functional Keras model; or, with `sequence_axes`, any other model called as model(inputs).
        inputs: what `model.predict` takes, but ragged: one list of id lists for a model of one input, else a
            list, tuple or dict (by input name) of such columns. A column of plain numbers is an input of
            shape [B].
        batch_size: records per forward pass, at most.
        max_length: longest padded length allowed, in tokens (the positions that the model has); None for no
            limit.
        buckets: ascending padded lengths, in tokens; a longer record gets its own length.
        sequence_axes: axes of the outputs that run along the tokens; None for those whose length the model
            leaves open. A tuple, or one per output in a list.
        padding: token id for padding.
    Shapes:
        returns: for an output without sequence axes an array [N, ...], otherwise a list of N arrays that are
            cut to their record's length along these axes; for a model with several outputs a list of these.
    Raises:
        ValueError for no records, columns that do not fit together, or a record longer than max_length.
    """
    columns, names = _columns(inputs)
    lengths = _record_lengths(columns, max_length)
    forward, tree = _compiled(model)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    results = [None] * len(order)
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        size = _padded_length(lengths[rows[0]], buckets, max_length)
        outputs = forward(_batch(columns, names, _filled(rows, batch_size), size, padding))
        flat = tree.flatten(outputs)
        axes = _axes(model, sequence_axes, flat)
        for i, row in enumerate(rows):  # the rows that fill the batch come last and are left out
            results[row] = [_cut(x[i], cut, lengths[row]) for x, cut in zip(flat, axes, strict=True)]
    collected = zip(zip(*results, strict=True), axes, strict=True)
    return tree.pack_sequence_as(outputs, [list(rows) if cut else np.stack(rows) for rows, cut in collected])


def _columns(inputs):
    """Return the columns of records, and their names if they came in a dict."""
    if isinstance(inputs, dict):
        return list(inputs.values()), list(inputs)
    columns = list(inputs) if _depth(inputs) > 2 or isinstance(inputs, tuple) else [inputs]
    return columns, None


def _depth(x):
    """Return how deep lists are nested; a list of records has 2, a list of columns 3."""
    if not hasattr(x, "__len__"):
        return 0
    return np.ndim(x) if isinstance(x, np.ndarray) else 1 + max((_depth(y) for y in x[:1]), default=0)


def _record_lengths(columns, max_length):
    """Return the length of each record, which all its sequences must have."""
    sizes = {len(column) for column in columns}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"inputs must be columns of equally many records, at least 1; got {sorted(sizes)}.")
    ragged = [[len(x) for x in column] for column in columns if hasattr(column[0], "__len__")]
    if not ragged or any(lengths != ragged[0] for lengths in ragged):
        raise ValueError("all sequences of one record must be equally long, e.g. token ids and segment ids.")
    if max_length is not None and max(ragged[0]) > max_length:
        raise ValueError(f"records must have at most {max_length} tokens; got {max(ragged[0])}. Cut them.")
    return ragged[0]


def _padded_length(length, buckets, max_length):
    size = bucket(length, buckets)
    return size if max_length is None else min(size, max_length)


def _filled(rows, batch_size):
    """Return row numbers, the first one repeated until their count is a power of two or the batch is full."""
    size = min(power_of_two(len(rows)), batch_size)
    return rows + rows[:1] * (size - len(rows))


def _batch(columns, names, rows, size, padding):
    """Return the padded inputs of one forward pass, in the structure of the model's inputs."""
    arrays = []
    for number, column in enumerate(columns):
        records = [column[row] for row in rows]
        if not hasattr(records[0], "__len__"):
            arrays.append(np.asarray(records))
        else:
            arrays.append(sequence_padding(records, size, padding if number == 0 else 0))
    if names is not None:
        return dict(zip(names, arrays, strict=True))
    return arrays[0] if len(arrays) == 1 else arrays


def _axes(model, given, outputs):
    """Return the sequence axes of each output."""
    if given is not None:
        return given if isinstance(given, list) else [given] * len(outputs)
    if not hasattr(model, "outputs"):
        raise ValueError(f"{type(model).__name__} does not tell its sequence axes: give sequence_axes=.")
    return [tuple(i for i, size in enumerate(x.shape) if i and size is None) for x in model.outputs]


def _cut(output, axes, length):
    """Return one record's output without padding; a copy, so that the padded batch can be freed."""
    index = [slice(None)] * output.ndim
    for axis in axes:
        index[axis - 1] = slice(length)  # the batch axis is gone
    return output[tuple(index)].copy()


def _compiled(model):
    """Return the forward pass of a model, to NumPy arrays, compiled once; and Keras' tree functions."""
    from bert4x.backend import keras, runtime

    # The cache lives on the model, as Keras' own predict_function does; a table here would keep every model alive for
    # ever.
    if not hasattr(model, "_bert4x_forward"):
        model._bert4x_forward = runtime.jit(model)
    compiled = model._bert4x_forward
    return (lambda inputs: keras.tree.map_structure(runtime.to_numpy, compiled(inputs))), keras.tree
