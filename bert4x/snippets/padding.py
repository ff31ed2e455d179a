"""Ragged sequences to arrays: padding, truncation, and the padded lengths that length buckets allow."""

import bisect

import numpy as np


def to_array(*args):
    """Turn each argument into an array: one array for one argument, else a list of arrays.

    Lists of Python integers become int32, as token ids are everywhere.
    """
    arrays = [_compact(np.array(x)) for x in args]
    return arrays[0] if len(arrays) == 1 else arrays


def sequence_padding(inputs, length=None, value=0, seq_dims=1, mode="post"):
    """Pad and truncate sequences to one length and stack them.

    Args:
        inputs: list of B sequences (lists, tuples or arrays); with seq_dims > 1 the inner ones may be ragged
            too.
        length: length wanted, in items: None for the longest, an int for all axes, or a list with one entry
            per axis. What is longer is cut at its end, also with mode "pre".
        value: what to pad with.
        seq_dims: how many leading axes of a sequence are padded; the axes behind them must be equal.
        mode: "post" pads behind the items, "pre" in front of them.
    Shapes:
        returns: [B, L_1, ..., L_seq_dims, ...]; integers come out as int32 where they fit.
    Raises:
        ValueError for an empty list, an unknown mode, or sequences of different depth.
    """
    if mode not in ("post", "pre"):
        raise ValueError(f"mode must be 'post' or 'pre'; got {mode!r}.")
    if len(inputs) == 0:
        raise ValueError("inputs must hold at least one sequence; got an empty list. Is the batch empty?")
    lengths = _lengths(inputs, length, seq_dims)
    dtype, tail = _item_type(inputs, seq_dims - 1, value)
    outputs = np.full((len(inputs), *lengths, *tail), value, dtype)
    for row, sequence in zip(outputs, inputs, strict=True):
        _fill(row, sequence, seq_dims, mode)
    return _compact(outputs)


def _fill(row, sequence, depth, mode):
    """Write a sequence into its padded row, whose first `depth` axes are padded."""
    size = min(len(sequence), len(row))
    place = row[len(row) - size:] if mode == "pre" else row[:size]
    if depth > 1:
        for inner_row, inner in zip(place, sequence, strict=False):  # what is behind the cut is not written
            _fill(inner_row, inner, depth - 1, mode)
    elif size:
        place[...] = sequence[:size]


def _lengths(inputs, length, seq_dims):
    """Return the padded length of every padded axis."""
    wanted = list(length) if hasattr(length, "__len__") else [length] * seq_dims
    if len(wanted) != seq_dims:
        raise ValueError(f"length must have one entry per padded axis; got {length} for seq_dims={seq_dims}.")
    for axis, items in enumerate(_levels(inputs, seq_dims)):
        if wanted[axis] is None:
            wanted[axis] = max((len(x) for x in items), default=0)
    return [int(size) for size in wanted]


def _levels(inputs, depth):
    """Yield the sequences at each of the `depth` levels of nesting."""
    items = list(inputs)
    for _ in range(depth):
        if not all(hasattr(x, "__len__") for x in items):
            raise ValueError("inputs must be sequences at each padded axis; got a number. See seq_dims.")
        yield items
        items = [y for x in items for y in x]


def _item_type(inputs, depth, value):
    """Return the common type of all items and the padding value, and the shape behind the padded axes."""
    leaves = list(inputs)
    for _ in range(depth):
        leaves = [y for x in leaves for y in x]
    leaves = [leaf for leaf in map(np.asarray, leaves) if leaf.size]
    if not leaves:
        return np.result_type(np.int32, value), ()
    tails = {leaf.shape[1:] for leaf in leaves}
    dtype = np.result_type(*leaves)
    if len(tails) > 1 or dtype.kind not in "biuf":
        raise ValueError(
            "sequences must hold numbers, and agree on every axis that is not padded; "
            f"got type {dtype} and inner shapes {sorted(tails)}. Check seq_dims."
        )
    return (dtype if dtype.kind == "b" else np.result_type(dtype, value)), tails.pop()


def _compact(array):
    """Return int64 arrays as int32 if all values fit."""
    if array.dtype != np.int64:
        return array
    limits = np.iinfo(np.int32)
    fits = not array.size or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(np.int32) if fits else array


def truncate_sequences(maxlen, indices, *sequences):
    """Shorten sequences, in place, until together they have at most `maxlen` items.

    Again and again the longest sequence (the first of equals) loses its item at its index.

    Args:
        maxlen: total length allowed, in items.
        indices: int, or a list with one int per sequence: which item goes, e.g. -2 to keep the last one.
        sequences: lists; empty ones and None are left out of the result.
    Returns:
        list of the sequences that are not empty at the start, in order.
    Raises:
        ValueError if maxlen is negative or an index is not in its sequence.
    """
    if maxlen < 0:
        raise ValueError(f"maxlen must be at least 0; got {maxlen}.")
    indices = list(indices) if hasattr(indices, "__len__") else [indices] * len(sequences)
    if len(indices) != len(sequences):
        raise ValueError(f"indices must be one or {len(sequences)}, as the sequences; got {len(indices)}.")
    pairs = [(sequence, index) for sequence, index in zip(sequences, indices, strict=True) if sequence]
    for _ in range(sum(len(sequence) for sequence, _ in pairs) - maxlen):
        sequence, index = max(pairs, key=lambda pair: len(pair[0]))
        if not -len(sequence) <= index < len(sequence):
            raise ValueError(f"cannot remove item {index} of {len(sequence)} items; use a larger maxlen.")
        sequence.pop(index)
    return [sequence for sequence, _ in pairs]


def bucket_length(sequences, buckets):
    """Return the padded length for these sequences: the smallest bucket that holds the longest of them.

    Args:
        sequences: list of sequences, or of their lengths.
        buckets: ascending lengths, in items; what is longer than the last one gets the last one (and is cut
            by `sequence_padding`).
    """
    longest = max((len(x) if hasattr(x, "__len__") else x for x in sequences), default=0)
    return buckets[min(bisect.bisect_left(buckets, longest), len(buckets) - 1)]
