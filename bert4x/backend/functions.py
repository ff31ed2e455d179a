"""Activations, position formulas and schedules: pure functions on `keras.ops`."""

import keras
from keras import ops

_gelu_version = None  # what the bare string 'gelu' means; None until `set_gelu` is called


@keras.saving.register_keras_serializable(package="bert4x")
def gelu_erf(x):
    """GELU with the error function: x/2 (1 + erf(x / sqrt 2)). Source: arXiv:1606.08415."""
    return ops.gelu(x, approximate=False)


@keras.saving.register_keras_serializable(package="bert4x")
def gelu_tanh(x):
    """GELU, tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); within 4.74e-4 of `gelu_erf`."""
    return ops.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="bert4x")
def swish(x):
    """x sigmoid(x), also called SiLU. Source: arXiv:1710.05941."""
    return ops.silu(x)


@keras.saving.register_keras_serializable(package="bert4x")
def leaky_relu(x, alpha=0.2):
    """x where x > 0, else alpha x."""
    return ops.leaky_relu(x, negative_slope=alpha)


_ACTIVATIONS = {
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "swish": swish,
    "leaky_relu": leaky_relu,
}
_GELU = {"erf": gelu_erf, "tanh": gelu_tanh}


def set_gelu(version):
    """Fix what the bare string 'gelu' means from now on.

    Args:
        version: 'erf' or 'tanh'; None returns to each family's own meaning.
    Raises: ValueError for another name.
    """
    global _gelu_version
    if version is not None and version not in _GELU:
        raise ValueError(f"the gelu version must be 'erf', 'tanh' or None; got {version!r}")
    _gelu_version = version


def get_gelu():
    """The version given to `set_gelu`: 'erf', 'tanh', or None if it was not called."""
    return _gelu_version


def get_activation(name):
    """Look up an activation by name; 'gelu' follows `set_gelu` (erf by default), other names are literal.

    Args:
        name: str, callable, serialised config, or None (linear).
    """
    if name == "gelu":
        return _GELU[_gelu_version or "erf"]
    if isinstance(name, str) and name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    try:
        return keras.activations.get(name)
    except ValueError as error:
        ours = ", ".join(["gelu", *_ACTIVATIONS])
        raise ValueError(f"unknown activation {name!r}; there are {ours}, and Keras' own") from error


def sinusoidal_embeddings(pos, dim, base=10000, *, scales=None):
    """Position vectors with sine and cosine interleaved: [p, 2i] = sin(p base^(-2i/dim)), [p, 2i+1] = cos.

    Args:
        pos: positions in tokens, number tensor of any shape [...].
        dim: even width.
        scales: dim / 2 numbers with which the rates base^(-2i/dim) are multiplied.
    Shapes: returns float32 [..., dim].
    Source: arXiv:1706.03762 section 3.5.
    """
    if dim % 2:
        raise ValueError(f"dim must be even for sine and cosine pairs; got {dim}. Use {dim + 1}.")
    rate = ops.power(float(base), -2.0 * ops.arange(dim // 2, dtype="float32") / dim)
    rate = rate if scales is None else rate * ops.convert_to_tensor(scales, dtype="float32")
    angle = ops.expand_dims(ops.cast(pos, "float32"), -1) * rate
    pairs = ops.stack([ops.sin(angle), ops.cos(angle)], axis=-1)
    return ops.reshape(pairs, (*ops.shape(angle)[:-1], dim))


def apply_rotary_position_embeddings(sinusoidal, *tensors, halves=False):
    """Rotate pairs of components of each vector by its position's angles.

    For a pair (a, b): a' = a cos - b sin;  b' = b cos + a sin. The pairs are (0, 1), (2, 3), ..., or with `halves`
    (0, K/2), (1, K/2 + 1), ... as LLaMA has them.

    Args:
        sinusoidal: table of `sinusoidal_embeddings`, [B or 1, T, K].
        tensors: [B, T, K] or [B, T, H, K] each.
    Returns: one tensor, or a list if several were given.
    Source: arXiv:2104.09864 eq. 34.
    """
    sin, cos = sinusoidal[..., 0::2], sinusoidal[..., 1::2]
    outputs = [_rotate(x, sin, cos, halves) for x in tensors]
    return outputs[0] if len(outputs) == 1 else outputs


def _rotate(x, sin, cos, halves):
    if len(x.shape) == 4:
        sin, cos = ops.expand_dims(sin, 2), ops.expand_dims(cos, 2)
    sin, cos = ops.cast(sin, x.dtype), ops.cast(cos, x.dtype)
    if halves:
        a, b = ops.split(x, 2, axis=-1)
        return ops.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return ops.reshape(ops.stack([a * cos - b * sin, b * cos + a * sin], axis=-1), ops.shape(x))


def piecewise_linear(t, schedule, from_zero=True):
    """Piecewise linear function of the step t through the points of `schedule`, constant after the last.

    Args:
        t: step counted in optimizer updates, integer scalar tensor.
        schedule: dict {step: value}, e.g. {1000: 1, 2000: 0.1}.
        from_zero: start from the point (0, 0) unless step 0 is given.
    Shapes: returns a float32 scalar.
    """
    points = sorted((int(step), float(value)) for step, value in schedule.items())
    if from_zero and points[0][0] != 0:
        points = [(0, 0.0), *points]
    t = ops.cast(t, "float32")
    value = ops.convert_to_tensor(points[0][1], dtype="float32")
    for (t0, v0), (t1, v1) in zip(points, points[1:], strict=False):
        slope = (v1 - v0) / (t1 - t0)
        value = ops.where(t >= t0, v0 + slope * (t - t0), value)
    return ops.where(t >= points[-1][0], points[-1][1], value)
