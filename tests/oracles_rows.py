"""Truth for the gradients of norms, activations and embedding: float64 numpy, as oracles.py."""

import math

import numpy as np

F64 = np.float64


def _f64(*arrays):
    return tuple(np.asarray(a).astype(F64) for a in arrays)


def rms_norm_backward(g, h, weight, eps=1e-6, weight_offset=0.0, passed=0.0):
    """-> dh (with `passed`, the gradient that h itself gets), dweight; rows h [N, E]."""
    g, h, weight, passed = _f64(g, h, weight, passed)
    r = 1 / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + eps)
    n, c = h * r, g * (weight + weight_offset)
    return r * (c - n * np.mean(c * n, axis=-1, keepdims=True)) + passed, (g * n).sum(0)


def layer_norm_backward(g, h, weight, eps=1e-5, passed=0.0):
    """-> dh (with `passed`), dweight, dbias; rows h [N, E]."""
    g, h, weight, passed = _f64(g, h, weight, passed)
    r = 1 / np.sqrt(h.var(-1, keepdims=True) + eps)
    n, c = (h - h.mean(-1, keepdims=True)) * r, g * weight
    c = c - c.mean(-1, keepdims=True)
    dh = r * (c - n * np.mean(c * n, axis=-1, keepdims=True)) + passed
    return dh, (g * n).sum(0), g.sum(0)


def silu_slope(x):
    """d silu / dx = s + x s (1 - s), s = sigmoid(x)."""
    x = np.asarray(x, F64)
    s = 0.5 * (1 + np.tanh(x / 2))
    return s + x * s * (1 - s)


def gelu_slope(x, approximate="none"):
    """d gelu / dx; exact: Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)."""
    x = np.asarray(x, F64)
    if approximate == "tanh":
        a, b = math.sqrt(2 / math.pi), 0.044715
        t = np.tanh(a * (x + b * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * b * x * x)
    phi = 0.5 * np.vectorize(math.erfc, otypes=[F64])(-x / math.sqrt(2))
    return phi + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def embedding_backward(g, ids, rows):
    """dweight [rows, E]: row v is the sum of the g[t] with ids[t] = v."""
    out = np.zeros((rows, g.shape[1]))
    np.add.at(out, ids, np.asarray(g).astype(F64))
    return out


def advance_rows(state, chosen, places=None):
    """The state [F, R] after a step, a row at a time: ids, positions, lengths, owners, draws,
    limits, eight end tokens."""
    state = state.copy()
    for b, token in enumerate(chosen):
        r = b if places is None else places[b]
        if not 0 <= r < state.shape[1] or state[3, r] < 0:
            continue
        state[0, r] = token
        state[[1, 2, 4], r] += 1
        if token < 0 or token in state[6:14, r] or state[1, r] >= state[5, r]:
            state[3, r], state[2, r] = -1, 0
    return state
