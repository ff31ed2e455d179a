"""Each layer in obvious NumPy (float64): loops where they make the definition plainer, nothing shared with the code.

Weights are passed as a dict {path inside the layer: array}, as the layer's variables are called.
"""

import math

import numpy as np


def gelu(x):
    """x times the normal distribution function."""
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.ravel(x)]).reshape(np.shape(x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x):
    return np.maximum(x, 0)


def linear(x):
    return x


ACTIVATIONS = {"gelu_erf": gelu, "gelu_tanh": gelu_tanh, "relu": relu, "tanh": np.tanh, "linear": linear}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def masked_softmax(scores, allowed):
    """Row by row over the allowed entries; a row without any is zero."""
    weights = np.zeros(scores.shape)
    allowed = np.broadcast_to(allowed, scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        seen = allowed[row]
        if seen.any():
            weights[row][seen] = softmax(scores[row][seen])
    return weights


def normalized(scores, allowed, method="softmax"):
    """The three ways from scores to weights (layers.md 1.2)."""
    allowed = np.broadcast_to(allowed, scores.shape)
    count = np.maximum(allowed.sum(-1, keepdims=True), 1)
    if method == "softmax_plus":
        scores = scores * np.log(np.maximum(count, 16)) / np.log(512)
    if method == "squared_relu":
        return np.where(allowed, relu(scores) ** 2 / count, 0)
    return masked_softmax(scores, allowed)


def dense(x, w, prefix=""):
    y = x @ w[f"{prefix}kernel"]
    return y + w[f"{prefix}bias"] if f"{prefix}bias" in w else y


def heads(x, count):
    """[B, T, H K] -> [B, H, T, K]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def attention(w, q, k, v, *, count, allowed=True, added=0.0, rotary=None, relative=None, t5=None, scale=True,
              method="softmax", mixes=None, synthetic=None):
    """Multi-head attention (layers.md 2). Returns (output, scores before boolean masks).

    Args:
        allowed: boolean, broadcastable to [B, H, T, S].
        added: number, added to the scores after scaling.
        rotary: positions [T] of the queries, which are those of the keys.
        relative: vectors [T, S, K] for keys and values.
        t5: numbers [T, S, H], added before (here: without) scaling.
        mixes: Lambda [H, G] before and M [G, H] after the softmax (layers.md 3).
        synthetic: scores that replace those of queries and keys (layers.md 4).
    """
    if synthetic is not None:
        o = normalized(synthetic, allowed) @ heads(dense(v, w, "value/"), count)
        return dense(o.transpose(0, 2, 1, 3).reshape(*v.shape[:2], -1), w, "out/"), synthetic
    q, k, v = (heads(dense(x, w, f"{name}/"), count) for x, name in ((q, "query"), (k, "key"), (v, "value")))
    if rotary is not None:
        q, k = rotated(q, rotary), rotated(k, rotary)
    scores = q @ k.swapaxes(-1, -2)
    if relative is not None:
        scores = scores + np.einsum("bhtk,tsk->bhts", q, relative)
    if t5 is not None:
        scores = scores + t5.transpose(2, 0, 1)
    if scale:
        scores = scores / math.sqrt(q.shape[-1])
    if mixes is not None:
        scores = np.einsum("bhts,hg->bgts", scores, mixes[0])
    scores = scores + added
    weights = normalized(scores, allowed, method)
    if mixes is not None:
        weights = np.einsum("bgts,gh->bhts", weights, mixes[1])
    o = weights @ v
    if relative is not None:
        o = o + np.einsum("bhts,tsk->bhtk", weights, relative)
    o = o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1)
    return dense(o, w, "out/"), scores


def synthetic_scores(w, x, keys, mode, count):
    """Scores [B, H, T, T] of one mode of the Synthesizer, entry by entry."""
    size, length = x.shape[:2]
    scores = np.zeros((size, count, length, length))
    for b, h, i, j in np.ndindex(scores.shape):
        if mode == "dense":
            inner = relu(x[b, i] @ w["inner_kernel"][h] + w["inner_bias"][h])
            scores[b, h, i, j] = inner @ w["outer_kernel"][h][:, j] + w["outer_bias"][h, j]
        elif mode == "factorized_dense":
            first = x[b, i] @ w["first_kernel"][h] + w["first_bias"][h]
            second = x[b, i] @ w["second_kernel"][h] + w["second_bias"][h]
            scores[b, h, i, j] = first[j // len(second)] * second[j % len(second)]
        elif mode == "factorized_random":
            scores[b, h, i, j] = w["random_rows"][h, i] @ w["random_columns"][h, j]
        elif mode == "dot":
            q, k = heads(dense(x, w, "query/"), count)[b, h, i], heads(dense(keys, w, "key/"), count)[b, h, j]
            scores[b, h, i, j] = q @ k / math.sqrt(len(q))
        else:
            scores[b, h, i, j] = w["random_table" if mode == "random" else "fixed_table"][h, i, j]
    return scores


def gated_unit(w, x, others=(), *, units, allowed=True, added=0.0, method="squared_relu"):
    """Gated attention unit (layers.md 10) with swish; `others`: the inputs of k and v in the cross form."""
    def project(y, name):
        y = dense(y, w, name)
        return y / (1 + np.exp(-y))

    inner = project(x, "inner/")
    if others:
        u, q, k, v = inner[..., :units], inner[..., units:], project(others[0], "key/"), project(others[1], "value/")
    else:
        u, v, z = inner[..., :units], inner[..., units : 2 * units], inner[..., 2 * units :]
        q, k = (z * w[f"{name}_gamma"] + w.get(f"{name}_beta", 0.0) for name in ("query", "key"))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + added
    return dense(u * (normalized(scores, allowed, method) @ v), w, "out/")


def sinusoidal(positions, width, base=10000):
    """[..., 2i] = sin(p base^(-2i/width)), [..., 2i + 1] = cos of the same."""
    table = np.zeros((*np.shape(positions), width))
    for i in range(0, width, 2):
        angle = np.asarray(positions) * base ** (-i / width)
        table[..., i], table[..., i + 1] = np.sin(angle), np.cos(angle)
    return table


def rotated(x, positions):
    """Each pair (2i, 2i + 1) of x [..., T, K] as a complex number, turned by its position's angle."""
    width = x.shape[-1]
    y = np.zeros(x.shape)
    for i in range(0, width, 2):
        turn = np.exp(1j * np.asarray(positions) * 10000 ** (-i / width))
        z = (x[..., i] + 1j * x[..., i + 1]) * turn
        y[..., i], y[..., i + 1] = z.real, z.imag
    return y


def hierarchical(table, length, alpha):
    """Position i N + j is alpha u_i + (1 - alpha) u_j, u = (p - alpha p_0) / (1 - alpha)."""
    u = (table - alpha * table[0]) / (1 - alpha)
    rows = len(table)
    return np.array([alpha * u[t // rows] + (1 - alpha) * u[t % rows] for t in range(length)])


def clipped_offsets(queries, keys, limit):
    return np.array([[min(max(j - i, -limit), limit) + limit for j in range(keys)] for i in range(queries)])


def t5_bucket(offset, buckets=32, furthest=128, bidirectional=True):
    """Bucket of key position - query position."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    far = exact + math.floor(math.log(distance / exact) / math.log(furthest / exact) * (buckets - exact))
    return first + min(far, buckets - 1)


def layer_norm(x, gamma=1.0, beta=0.0, epsilon=1e-12, zero_mean=True):
    if zero_mean:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def conditions(w, c, activation=linear):
    """What a condition [B, C] or [B, T, C] adds to gamma and beta, each broadcastable to [B, T, D]."""
    c = c[:, None] if c.ndim == 2 else c
    if "hidden_dense/kernel" in w:
        c = activation(c @ w["hidden_dense/kernel"])
    return c @ w["gamma_dense/kernel"], c @ w["beta_dense/kernel"]


def feed_forward(w, x, activations):
    y = 1.0
    for i, activation in enumerate(activations):
        y = y * activation(dense(x, w, f"inner_{i}/"))
    return dense(y, w, "out/")


def unilm(segments):
    """Query i may see key j iff the running sum of segments at j is not above that at i."""
    level = np.cumsum(segments, axis=1)
    return level[:, None, :] <= level[:, :, None]


def mean_pooled(x, mask):
    """Mean over the positions that the mask keeps; zeros where it keeps none."""
    return pooled(x, mask, np.mean)


def max_pooled(x, mask):
    return pooled(x, mask, np.max)


def pooled(x, mask, reduce):
    output = np.zeros((len(x), x.shape[-1]))
    for b in range(len(x)):
        if mask[b].any():
            output[b] = reduce(x[b][mask[b]], axis=0)
    return output


def global_pointer(w, x, count, rotary=True):
    """Scores of the spans [start, end] for each type (layers.md 11): per type start vector, then end vector."""
    both = heads(dense(x, w, "dense/"), count)
    return spans(both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :], rotary)


def spans(starts, ends, rotary=True):
    if rotary:
        starts, ends = (rotated(part, range(part.shape[-2])) for part in (starts, ends))
    return starts @ ends.swapaxes(-1, -2) / math.sqrt(starts.shape[-1])


def efficient_global_pointer(w, x):
    y = dense(x, w, "p_dense/")
    t = dense(y, w, "q_dense/") / 2
    shared = spans(y[..., 0::2], y[..., 1::2])
    types = range(t.shape[-1] // 2)
    return np.stack([shared + t[:, None, :, 2 * h] + t[:, :, None, 2 * h + 1] for h in types], axis=1)
