"""Changing the size of weights while they are loaded: arrays in, arrays out."""

import math

import numpy as np


def compound_rows(table, compound_tokens):
    """Append one row per compound token: the (weighted) mean of rows of the table.

    Args:
        table: [V, ...], already restricted to keep_tokens.
        compound_tokens: list of id lists, or of pairs (ids, weights); ids refer to `table`.
    Shapes: returns [V + len(compound_tokens), ...].
    """
    if not compound_tokens:
        return table
    rows = []
    for item in compound_tokens:
        ids, weights = item if isinstance(item, tuple) else (item, None)
        if max(ids) >= len(table):
            raise ValueError(
                f"compound_tokens refer to rows of the table after keep_tokens, 0 to {len(table) - 1}; got {max(ids)}"
            )
        rows.append(np.average(table[list(ids)], axis=0, weights=weights))
    return np.concatenate([table, np.stack(rows).astype(table.dtype)])


def resize_array(array, shape):
    """Resize a weight to another width by repeating its features in pairs, keeping its Frobenius norm.

    An axis that grows is seen as pairs, the pairs are repeated and cropped; an axis that shrinks is cropped.

    Shapes: any -> `shape`, of the same rank.
    """
    if array.ndim != len(shape):
        raise ValueError(f"a weight of shape {array.shape} cannot be resized to {shape}: the ranks differ")
    resized = array
    for axis, size in enumerate(shape):
        resized = _resize_axis(resized, axis, size)
    norm = np.linalg.norm(resized)
    return (resized * (np.linalg.norm(array) / norm if norm else 1.0)).astype(array.dtype)


def _resize_axis(array, axis, size):
    old = array.shape[axis]
    if size > old:
        pairs = array.reshape(*array.shape[:axis], -1, 2 if old % 2 == 0 else 1, *array.shape[axis + 1 :])
        array = np.repeat(pairs, math.ceil(size / old), axis=axis)
        array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
    return array.take(range(size), axis=axis)
