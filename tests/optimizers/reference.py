"""Optimizers and extensions in plain NumPy, one variable at a time, written from the formulas alone."""

import numpy as np


def rms(x):
    return np.sqrt(np.mean(x**2))


def adam(g, x, s, t, lr, b1=0.9, b2=0.999, eps=1e-6, correct=True):
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    m, v = (s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)) if correct else (s["m"], s["v"])
    return m / (np.sqrt(v) + eps)


def adam_without_correction(g, x, s, t, lr):
    return adam(g, x, s, t, lr, correct=False)


def adax(g, x, s, t, lr, b1=0.9, b2=1e-4, eps=1e-6):
    # The article's growing v, but what is kept is v / ((1 + b2)^t - 1): that is what stays when moments are frozen.
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    v = (1 + b2) * s.get("v", 0) * ((1 + b2) ** (t - 1) - 1) + b2 * g**2
    s["v"] = v / ((1 + b2) ** t - 1)
    return s["m"] / (np.sqrt(s["v"]) + eps)


def lion(g, x, s, t, lr, b1=0.95, b2=0.98):
    m = s.get("m", np.zeros_like(g))
    s["m"] = b2 * m + (1 - b2) * g
    return np.sign(b1 * m + (1 - b1) * g)


def adafactor(g, x, s, t, lr, min_dim=2):
    b2, q = 1 - t**-0.8, g**2 + 1e-30
    if g.ndim == 2 and min(g.shape) >= min_dim:
        s["r"] = b2 * s.get("r", 0) + (1 - b2) * q.mean(axis=1)
        s["c"] = b2 * s.get("c", 0) + (1 - b2) * q.mean(axis=0)
        v = np.outer(s["r"], s["c"]) / s["r"].mean()
    else:
        v = s["v"] = b2 * s.get("v", 0) + (1 - b2) * q
    z = g / np.sqrt(v + 1e-30)
    return z / max(1, rms(z)) * max(rms(x), 1e-3)


def sgd(g, x, s, t, lr, momentum=0.9):
    s["m"] = momentum * s.get("m", 0) - lr * g
    return -s["m"] / lr


def rmsprop(g, x, s, t, lr, rho=0.9, eps=1e-7):
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g**2
    return g / np.sqrt(s["v"] + eps)


def keras_adam(g, x, s, t, lr):
    return adam(g, x, s, t, lr, eps=1e-7 / np.sqrt(1 - 0.999**t))


def schedule_at(u, points):
    """Multiplier after u updates."""
    steps = sorted({0: 0.0, **points})
    return np.interp(u, steps, [{0: 0.0, **points}[step] for step in steps])


def trajectory(base, x, gradients, path="", lr=0.01, **on):
    """(x, average) of one variable after all gradients.

    Options, by extension: accumulate=n, centralize=True, decay=w, adapt=True, schedule=dict, paramwise=dict,
    lazy=True, freeze=True, lookahead=(k, alpha), ema=mu.
    """
    n, state, average, slow = on.get("accumulate", 1), {}, 0.0, x
    for u in range(len(gradients) // n):
        t, g = u + 1, np.mean(gradients[u * n : (u + 1) * n], axis=0)
        old = {name: np.array(value) + np.zeros_like(g) for name, value in state.items()} if on.get("freeze") else {}
        centred = g - g.mean(axis=tuple(range(g.ndim - 1)), keepdims=True) if on.get("centralize") and g.ndim > 1 else g
        h = base(centred, x, state, t, lr) + on.get("decay", 0) * x
        if on.get("adapt") and np.linalg.norm(x) > 0 and np.linalg.norm(h) > 0:
            h = h * np.linalg.norm(x) / np.linalg.norm(h)
        rate = lr * schedule_at(u, on["schedule"]) if "schedule" in on else lr
        for key, factor in on.get("paramwise", {}).items():
            rate *= factor if key in path else 1
        delta = -rate * h
        if on.get("lazy"):
            active = (g != 0).any(axis=-1, keepdims=True)
            delta = delta * active
            if on.get("freeze"):
                state = {name: np.where(active, new, old.get(name, 0)) for name, new in state.items()}
        x = x + delta
        if "lookahead" in on and t % on["lookahead"][0] == 0:
            slow = x = slow + on["lookahead"][1] * (x - slow)
        average = on.get("ema", 0) * average + (1 - on.get("ema", 0)) * x
    return x, average
