"""ON-LSTM, the gated convolution, attention pooling and vector quantisation in obvious NumPy (float64).

Weights are passed as a dict {path inside the layer: array}; masks are bool [B, T], or True.
"""

import numpy as np

from tests.reference.layers import softmax


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def on_lstm_step(w, x, h, c, levels, exclusive=False):
    """One step of one sample: new h, new c, F, I. Level by level, unit by unit."""
    units = len(h)
    z = x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"]
    forget_share, input_share = softmax(z[:levels]), softmax(z[levels : 2 * levels])
    forget = np.array([forget_share[: k + 1].sum() for k in range(levels)])
    remember = np.array([input_share[k + exclusive :].sum() for k in range(levels)])
    f, i, o, g = np.split(z[2 * levels :], 4)
    new = np.zeros(units)
    for u in range(units):
        level = u // (units // levels)
        both = forget[level] * remember[level]
        lstm = sigmoid(f[u]) * c[u] + sigmoid(i[u]) * np.tanh(g[u])
        new[u] = both * lstm + (forget[level] - both) * c[u] + (remember[level] - both) * np.tanh(g[u])
    return sigmoid(o) * np.tanh(new), new, forget, remember


def on_lstm(w, x, mask, levels, exclusive=False):
    """States [B, T, units], 1 - mean(F) and mean(I) [B, T]; a masked step copies the state, its distances are 0."""
    mask = np.broadcast_to(mask, x.shape[:2])
    units = w["recurrent_kernel"].shape[0]
    states, distances = np.zeros((*x.shape[:2], units)), np.zeros((2, *x.shape[:2]))
    for b in range(len(x)):
        h, c = np.zeros(units), np.zeros(units)
        for t in range(x.shape[1]):
            if mask[b, t]:
                h, c, forget, remember = on_lstm_step(w, x[b, t], h, c, levels, exclusive)
                distances[:, b, t] = 1 - forget.mean(), remember.mean()
            states[b, t] = h
    return [states, *distances]


def gated_convolution(w, x, mask, rate=1, residual=True):
    """The DGCNN block, tap by tap; zeros stand before the first and behind the last position."""
    kept = np.broadcast_to(mask, x.shape[:2])[..., None].astype("float64")
    kernel = w["conv/kernel"]
    y = np.tile(w["conv/bias"], (*x.shape[:2], 1))
    for t in range(x.shape[1]):
        for tap in range(len(kernel)):
            place = t + rate * (tap - len(kernel) // 2)
            if 0 <= place < x.shape[1]:
                y[:, t] += (x * kept)[:, place] @ kernel[tap]
    value, gate = np.split(y, 2, axis=-1)
    if not residual:
        return value * sigmoid(gate) * kept
    shortcut = x @ w["shortcut/kernel"] + w["shortcut/bias"] if "shortcut/kernel" in w else x
    return (shortcut * (1 - sigmoid(gate)) + value * sigmoid(gate)) * kept


def attention_pooled(w, x, mask):
    """Row by row over the unmasked positions; zeros where there are none."""
    mask = np.broadcast_to(mask, x.shape[:2])
    pooled = np.zeros((len(x), x.shape[-1]))
    for b in range(len(x)):
        rows = x[b][mask[b]]
        if len(rows):
            pooled[b] = softmax((np.tanh(rows @ w["key/kernel"]) @ w["score/kernel"])[:, 0]) @ rows
    return pooled


def nearest(codebook, z):
    """Number of the nearest code of each vector."""
    return ((z[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
