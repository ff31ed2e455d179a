"""Functions of next-token logits [N, V]: filters (top-k, top-p, min-p, typical), the seeded draw, and checks of rows.

A token is out when its logit is at or below -1e4; what is taken out here is set to -1e9. No filter takes out the most
probable token of a row. Nothing here sorts: a threshold is found bit by bit (`_smallest_key`), which is exact and takes
3 ms for [8, 50257] on two CPU cores, where a sort takes 30 to 70.
"""

import numpy as np

from bert4x.backend import masked_logit, ops
from bert4x.backend.tensors import ABSENT

BANNED = masked_logit("float32")
_LOWEST = -(2**31)


def allowed(logits):
    """True where a token may be chosen: bool, shape of the logits. NaN is not allowed."""
    return ops.greater(logits, ABSENT)


def ban(logits, banned):
    """Logits in which the tokens where `banned` is true are out."""
    return ops.where(banned, BANNED, logits)


def exhausted(logits):
    """True for each row in which no token is allowed: bool [N] for float [N, V]."""
    return ops.logical_not(ops.any(allowed(logits), axis=-1))


def is_finite(logits):
    """True for each row without NaN and +inf: bool [N] for float [N, V]. A logit of -inf is a banned token."""
    return ops.all(ops.less(logits, np.float32("inf")), axis=-1)


def scale(logits, temperature):
    """(logits - their maximum) / temperature; tokens that are out stay out.

    The shift changes no probability. It keeps the best token in at any temperature, however small.
    """
    logits = ops.cast(logits, "float32")
    scaled = (logits - ops.max(logits, axis=-1, keepdims=True)) / temperature
    return ban(scaled, ops.logical_not(ops.logical_and(allowed(logits), allowed(scaled))))


def filter_top_k(logits, k):
    """The k largest logits of each row stay, and those that equal the k-th; k may exceed V.

    Args:
        logits: float [N, V].
        k: number or int tensor, at least 1.
    Returns: float32 [N, V], -1e9 for what is out.
    """
    logits = ops.cast(logits, "float32")
    others = ops.cast(logits.shape[-1] - k, "float32")
    return ban(logits, _below(_ordered(logits), ops.ones_like(logits), others))


def filter_top_p(logits, p):
    """The most probable tokens of each row stay that are needed to reach probability p together.

    A token stays if all that are more probable have less than p together: the one that crosses p stays, and equal
    logits stay or go together.

    Args:
        logits: float [N, V].
        p: number or float tensor, in (0, 1]; 1 keeps all.
    Returns: float32 [N, V], -1e9 for what is out.
    """
    logits = ops.cast(logits, "float32")
    return _nucleus(logits, logits, p)


def filter_min_p(logits, p):
    """Tokens stay that have at least p times the probability of the most probable one.

    Args:
        logits: float [N, V].
        p: number or float tensor, in [0, 1]; 0 keeps all.
    Returns: float32 [N, V], -1e9 for what is out.
    """
    logits = ops.cast(logits, "float32")
    return ban(logits, ops.less(_weights(logits), p))


def filter_typical(logits, p):
    """The most typical tokens of each row stay that are needed to reach probability p together.

    A token is the more typical, the smaller |-log q - H|, with q its probability and H the entropy of the row.

    Args:
        logits: float [N, V].
        p: number or float tensor, in (0, 1]; 1 keeps all.
    Returns: float32 [N, V], -1e9 for what is out. The most probable token may be out, the most typical one is not.
    Source: arXiv:2202.00666.
    """
    logits = ops.cast(logits, "float32")
    weights = _weights(logits)
    total = ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)  # 0 where no token is allowed
    logs = logits - ops.max(logits, axis=-1, keepdims=True) - ops.log(total)
    entropy = -ops.sum(ops.where(weights > 0, weights * logs, 0.0), axis=-1, keepdims=True) / total
    return _nucleus(logits, ops.where(allowed(logits), -ops.abs(logs + entropy), BANNED), p)


def draw(logits, uniforms):
    """One token of each row by its probability: the first whose cumulative probability, by id, exceeds the number.

    A row's token depends on its logits and its number only, and never has probability 0.

    Args:
        logits: float [N, V].
        uniforms: float32 [N], in [0, 1).
    Returns: int32 [N]; 0 for a row in which no token is allowed (see `exhausted`).
    """
    weights = _weights(ops.cast(logits, "float32"))
    ids = ops.expand_dims(ops.arange(weights.shape[-1], dtype="int32"), 0)
    sums = ops.cumsum(weights, axis=-1)
    exceeds = sums > ops.expand_dims(ops.cast(uniforms, "float32"), -1) * sums[:, -1:]
    # Sums of a parallel scan may fall by rounding, and the product may be rounded up to the last of them.
    first = ops.min(ops.where(ops.logical_and(exceeds, weights > 0), ids, weights.shape[-1]), axis=-1)
    return ops.minimum(first, ops.max(ops.where(weights > 0, ids, 0), axis=-1))


def uniform_numbers(seed, rows, steps):
    """Numbers for `draw` by NumPy, equal on all backends: those of row i depend on the seed and i only.

    Args:
        seed: int at least 0, or None for one from NumPy's global generator, which `set_seed` seeds.
        rows, steps: how many rows are drawn in each step, and how many steps.
    Returns: float32 [steps, rows] in [0, 1); the first steps do not depend on how many there are.
    """
    if seed is None:
        seed = int(np.random.randint(2**31))
    if rows < 1 or steps < 0 or seed < 0:
        raise ValueError(f"rows must be at least 1, steps and seed at least 0; got {rows}, {steps} and {seed}.")
    numbers = [np.random.default_rng([seed, row]).random(steps, dtype="float32") for row in range(rows)]
    return np.stack(numbers, axis=1)


def _weights(logits):
    """Probabilities times a number of the row: float32 [N, V], 1 for the most probable token, 0 for what is out."""
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    return ops.where(allowed(logits), weights, 0.0)


def _nucleus(logits, keys, p):
    """Logits of the tokens with the greatest keys, float32 [N, V], that are needed to reach probability p together."""
    weights = _weights(logits)
    # Summing from the small end is exact where p is near 1.
    rest = (1.0 - p) * ops.sum(weights, axis=-1, keepdims=True)
    return ban(logits, _below(_ordered(keys), weights, rest))


def _below(keys, weights, target):
    """True for the smallest keys of each row as long as their weights sum to no more than target; never for all."""
    threshold = _smallest_key(keys, weights, target)
    return keys < ops.minimum(threshold, ops.max(keys, axis=-1, keepdims=True))


def _ordered(x):
    """Integers in the order of float32 numbers, equal where these are: the bits, counted downwards if negative."""
    bits = ops.view(x, "int32")
    return ops.where(bits < 0, _LOWEST - bits, bits)  # -0.0 becomes 0


def _smallest_key(keys, weights, target):
    """The smallest int32 c for each row [N, 1] for which the weights of keys <= c sum to more than target.

    c is built from its highest bit downwards: a bit is set if the keys below still sum to no more than target. The sums
    only grow with c, rounding included, as all have the same terms in the same order, some of them set to 0.
    """
    low = ops.full_like(weights[:, :1], _LOWEST, dtype="int32")
    return ops.fori_loop(0, 32, _narrow, (low, low, keys, weights, target))[0]


def _narrow(i, state):
    # Not made anew for each call: then JAX, in an eager loop, compiles it once.
    low, step, keys, weights, target = state
    candidate = low + step  # the first step is -2**31, and wraps around from -2**31 to 0
    # A product, as `where` with a number is five times slower on torch.
    total = ops.sum(weights * ops.cast(keys < candidate, "float32"), axis=-1, keepdims=True)
    low = ops.where(total <= target, candidate, low)
    step = ops.bitwise_and(ops.right_shift(step, 1), 2**31 - 1)  # half of it, as if it were unsigned
    return low, step, keys, weights, target
