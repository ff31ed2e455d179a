"""Tensor helpers on `keras.ops`: shapes, masks, gathering, pooling, the masked softmax."""

import keras
from keras import ops

ABSENT = -1e4  # logits at or below this count as absent, for losses and decoders (decision 15)


def is_boolean(x):
    """Whether a tensor of any backend is boolean."""
    return keras.backend.standardize_dtype(x.dtype) == "bool"


def masked_logit(dtype):
    """The finite number that stands for "not allowed" before a softmax: -1e9, or -3e4 in float16."""
    return -3e4 if keras.backend.standardize_dtype(dtype) == "float16" else -1e9


def align(tensor, axes, ndim=None):
    """Spread the axes of a tensor over a larger rank, e.g. align([B, T], [0, -1], 3) is [B, 1, T].

    Args:
        axes: target axis of each axis of the tensor, ascending; negative ones count from the end.
        ndim: target rank; max(axes) + 1 if absent.
    """
    rank = len(tensor.shape)
    if len(axes) != rank:
        raise ValueError(f"align needs one target axis per axis; got {len(axes)} axes for rank {rank}")
    ndim = ndim or max(axes) + 1
    targets = [axis % ndim for axis in axes]
    for axis in range(ndim):
        if axis not in targets:
            tensor = ops.expand_dims(tensor, axis)
    return tensor


def reshape(tensor, *args):
    """Regional reshape: reshape(x, shape1, axis1, shape2, axis2, ...) replaces single axes by shapes.

    With one argument it is the ordinary reshape.
    """
    if len(args) == 1:
        return ops.reshape(tensor, args[0])
    if len(args) % 2:
        raise ValueError(f"reshape takes pairs of shape and axis; got {len(args)} arguments after the tensor")
    shape = [[size] for size in ops.shape(tensor)]
    for part, axis in zip(args[::2], args[1::2], strict=True):
        shape[axis] = list(part)
    return ops.reshape(tensor, [size for part in shape for size in part])


def flatten(tensor, start=None, end=None):
    """Join the axes start .. end - 1 into one (numpy slice rules for the bounds)."""
    rank = len(tensor.shape)
    joined = range(rank)[slice(start, end)]
    shape = ops.shape(tensor)
    return ops.reshape(tensor, (*shape[: joined[0]], -1, *shape[joined[-1] + 1 :]))


def sequence_masking(x, mask=None, value=0, axis=None, bias=None, return_mask=False):
    """Set the positions of `x` that a mask excludes to `value`, along the given axes.

    Args:
        x: number tensor.
        mask: bool or 0/1 [B, T], True = keep; axis 0 is the batch.
        value: number, or 'inf' / '-inf' for the finite number of `masked_logit`.
        axis: axis of x, or list of axes, along which T lies; 1 by default.
        bias: bool tensors are ANDed with the mask, float ones are added to x first.
        return_mask: also return the combined mask.
    """
    axes = [1] if axis is None else list(axis) if isinstance(axis, (list, tuple)) else [axis]
    masks = [] if mask is None else [align(ops.cast(mask, "bool"), [0, ax], len(x.shape)) for ax in axes]
    for extra in _as_list(bias):
        if is_boolean(extra):
            masks.append(align(extra, _trailing_axes(extra, x), len(x.shape)))
        else:
            x = x + align(extra, _trailing_axes(extra, x), len(x.shape))
    allowed = combine_masks(*masks)
    if allowed is not None:
        x = ops.where(allowed, x, ops.cast(_masking_value(value, x.dtype), x.dtype))
    return (x, allowed) if return_mask else x


def _as_list(x):
    return [] if x is None else list(x) if isinstance(x, (list, tuple)) else [x]


def _trailing_axes(part, whole):
    """[B, T, S] in [B, H, T, S]: the batch axis first, the others at the end."""
    rank = len(part.shape)
    return [0, *range(1 - rank, 0)] if rank > 1 else [-1]


def _masking_value(value, dtype):
    return {"-inf": 1, "inf": -1}.get(value, 0) * masked_logit(dtype) if isinstance(value, str) else value


def combine_masks(*masks):
    """Logical AND of the masks that are present; None if there is none."""
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else ops.logical_and(combined, mask)
    return combined


def attention_normalize(a, mask=None, axis=-1, method="softmax", bias=None):
    """Turn attention scores into weights over the allowed entries; a row without any gives zeros.

    softmax; softmax_plus: softmax(scores ln(max(l, 16)) / ln 512); squared_relu: relu(scores)^2 / l,
    where l is the number of allowed entries of the row.

    Args:
        a: scores, [..., T, S]. Computed in float32, returned in the dtype of `a`.
        mask: bool, broadcastable to `a`; True = allowed.
        bias: bool tensors are ANDed with the mask, float ones are added to the scores.
    Source: kexue.fm archives 8823 and 9019 for the two variants.
    """
    scores, allowed = sequence_masking(ops.cast(a, "float32"), None, 0, bias=bias, return_mask=True)
    allowed = combine_masks(mask, allowed)
    if method == "softmax":
        weights = _masked_softmax(scores, allowed, axis)
    elif method == "softmax_plus":
        length = ops.maximum(_allowed_count(scores, allowed, axis), 16.0)
        weights = _masked_softmax(scores * ops.log(length) / 6.238324625039508, allowed, axis)
    elif method == "squared_relu":
        squares = ops.square(ops.relu(scores)) / ops.maximum(_allowed_count(scores, allowed, axis), 1.0)
        weights = squares if allowed is None else ops.where(allowed, squares, 0.0)
    else:
        raise ValueError(f"normalization must be softmax, softmax_plus or squared_relu; got {method!r}")
    return ops.cast(weights, a.dtype)


def _masked_softmax(scores, allowed, axis):
    if scores.shape[axis] == 1:  # Keras warns of a softmax over one entry, which a sequence of one token has
        weights = ops.ones_like(scores)
        return weights if allowed is None else ops.where(allowed, weights, 0.0)
    if allowed is None:
        return ops.softmax(scores, axis=axis)
    weights = ops.softmax(ops.where(allowed, scores, masked_logit("float32")), axis=axis)
    # Without this a row that allows nothing would be uniform over everything.
    return ops.where(ops.any(allowed, axis=axis, keepdims=True), weights, 0.0)


def _allowed_count(scores, allowed, axis):
    if allowed is None:
        return ops.cast(ops.shape(scores)[axis], "float32")
    return ops.sum(ops.cast(ops.broadcast_to(allowed, ops.shape(scores)), "float32"), axis=axis, keepdims=True)


def batch_gather(params, indices):
    """Per sample gather: params [B, T, ...], indices int [B] or [B, N] -> [B, ...] or [B, N, ...]."""
    single = len(indices.shape) == 1
    index = ops.cast(indices[:, None] if single else indices, "int32")
    index = ops.reshape(index, (*ops.shape(index), *[1] * (len(params.shape) - 2)))
    index = ops.broadcast_to(index, (*ops.shape(index)[:2], *ops.shape(params)[2:]))
    gathered = ops.take_along_axis(params, index, axis=1)
    return gathered[:, 0] if single else gathered


def pool1d(x, pool_size, strides=1, padding="valid", data_format=None, pool_mode="max"):
    """Max or average pooling over the time axis of [B, T, D]."""
    pool = {"max": ops.max_pool, "avg": ops.average_pool}[pool_mode]
    return pool(x, pool_size, strides=strides, padding=padding, data_format=data_format)


def divisible_temporal_padding(x, n):
    """Zero-pad axis 1 of [B, T, ...] on the right until its length is a multiple of n."""
    padding = -ops.shape(x)[1] % n
    return ops.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (len(x.shape) - 2)])


def root_mean_square(x, axis=None, keepdims=False):
    """sqrt(mean(x^2))."""
    return ops.sqrt(ops.mean(ops.square(x), axis=axis, keepdims=keepdims))
