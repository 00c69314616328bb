"""Rotary embedding of x [T, H, D] by rows `positions` of cos, sin [S, half]; one token an item.

(a, b) -> (a·cos - b·sin, b·cos + a·sin); pairs (i, i + half) or, interleaved, (2i, 2i + 1);
dimensions 2·half.. pass through. Sources: `boostr/ops/rope.py`.
"""

from boostr.backends.numpy.kernels.runtime.memory import f32, i32, load_n, store_n
from boostr.backends.numpy.kernels.runtime.simd import LANES, fma, inline


@inline
def _split(x, y, cos, sin, half):
    for i in range(0, half, LANES):
        n = half - i
        a, b = load_n(x, i, n), load_n(x, half + i, n)
        c, s = load_n(cos, i, n), load_n(sin, i, n)
        store_n(y, i, fma(a, c, 0.0 - b * s), n)
        store_n(y, half + i, fma(b, c, a * s), n)


@inline
def _pairs(x, y, cos, sin, half):
    for i in range(half):
        a, b, c, s = x[2 * i], x[2 * i + 1], cos[i], sin[i]
        y[2 * i] = a * c - b * s
        y[2 * i + 1] = b * c + a * s


def rope(interleaved: bool):
    """params: x, y, cos, sin, positions, H, D, half, stride of x's tokens, S."""

    def kernel(params, start, stop):
        H, D, half, stride = params[5], params[6], params[7], params[8]
        for t in range(start, stop):
            row = min(max(i32(params[4])[t], 0), params[9] - 1)
            cos, sin = f32(params[2]) + row * half, f32(params[3]) + row * half
            for h in range(H):
                x, y = f32(params[0]) + (t * stride + h * D), f32(params[1]) + (t * H + h) * D
                if interleaved:
                    _pairs(x, y, cos, sin, half)
                else:
                    _split(x, y, cos, sin, half)
                for d in range(2 * half, D, LANES):
                    store_n(y, d, load_n(x, d, D - d), D - d)

    return kernel
