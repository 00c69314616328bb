"""Rotary embedding of x [T, H, D] by rows `positions` of cos, sin [S, half]; one token an item.

(a, b) -> (a·cos - b·sin, b·cos + a·sin); pairs (i, i + half) or, interleaved, (2i, 2i + 1);
dimensions 2·half.. pass through. Sources: `boostr/ops/rope.py`.
"""

from numba import float32

from boostr.backends.numpy.kernels.runtime.edges import load_upto, store_upto
from boostr.backends.numpy.kernels.runtime.memory import f32, i32
from boostr.backends.numpy.kernels.runtime.simd import LANES, fma, inline


@inline
def _split(x, y, cos, sin, half, sign):
    for i in range(0, half, LANES):
        n = half - i
        a, b = load_upto(x, i, n), load_upto(x, half + i, n)
        c, s = load_upto(cos, i, n), load_upto(sin, i, n) * sign
        store_upto(y, i, fma(a, c, 0.0 - b * s), n)
        store_upto(y, half + i, fma(b, c, a * s), n)


@inline
def _pairs(x, y, cos, sin, half, sign):
    for i in range(half):
        a, b, c, s = x[2 * i], x[2 * i + 1], cos[i], sin[i] * sign
        y[2 * i] = a * c - b * s
        y[2 * i + 1] = b * c + a * s


def rope(interleaved: bool, backward: bool):
    """params: x, y, cos, sin, positions, H, D, half, stride of x's tokens, S.

    `backward`: by the opposite angles, which is the gradient.
    """
    turn = float32(-1.0 if backward else 1.0)

    def kernel(params, start, stop):
        H, D, half, stride = params[5], params[6], params[7], params[8]
        for t in range(start, stop):
            row = min(max(i32(params[4])[t], 0), params[9] - 1)
            cos, sin = f32(params[2]) + row * half, f32(params[3]) + row * half
            for h in range(H):
                x, y = f32(params[0]) + (t * stride + h * D), f32(params[1]) + (t * H + h) * D
                if interleaved:
                    _pairs(x, y, cos, sin, half, turn)
                else:
                    _split(x, y, cos, sin, half, turn)
                for d in range(2 * half, D, LANES):
                    store_upto(y, d, load_upto(x, d, D - d), D - d)

    return kernel
