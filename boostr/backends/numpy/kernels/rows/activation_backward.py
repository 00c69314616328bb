"""Gradients of activations and of their gated forms, elementwise on rows [F].

dx = g · f'(x); of f(x) · up: dx = g · up · f'(x), dup = g · f(x).
Sources: `boostr/ops/activation.py`.
"""

from boostr.backends.numpy.kernels.runtime.edges import load_upto, store_upto
from boostr.backends.numpy.kernels.runtime.layout_ops import CHUNK
from boostr.backends.numpy.kernels.runtime.memory import f32
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline
from boostr.backends.numpy.kernels.runtime.special import (
    gelu,
    gelu_slope,
    gelu_tanh,
    gelu_tanh_slope,
    silu,
    silu_slope,
)

_FORMS = {
    "silu": (silu, silu_slope),
    "gelu": (gelu, gelu_slope),
    "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
}


def elementwise(form: str, gated: bool):
    """params: g, x, up, dx, dup, F, chunks of a row, inner and stride of g, of x, of up."""
    value, slope = _FORMS[form]

    @inline
    def step(g, x, up, dx, dup, e, n):
        grad, h = load_upto(g, e, n), load_upto(x, e, n)
        if gated:
            store_upto(dup, e, grad * value(h), n)
            grad = grad * load_upto(up, e, n)
        store_upto(dx, e, grad * slope(h), n)

    def kernel(params, start, stop):
        F, chunks = params[5], params[6]
        for item in range(start, stop):
            row, first = item // chunks, item % chunks * CHUNK
            last = min(F, first + CHUNK)
            g = f32(params[0]) + ((row // params[7]) * params[8] + row % params[7] * F)
            x = f32(params[1]) + ((row // params[9]) * params[10] + row % params[9] * F)
            up = f32(params[2]) + ((row // params[11]) * params[12] + row % params[11] * F)
            dx, dup = f32(params[3]) + row * F, f32(params[4]) + row * F
            whole = last - (last - first) % LANES
            for e in range(first, whole, LANES):
                step(g, x, up, dx, dup, e, LANES)
            if whole < last:
                step(g, x, up, dx, dup, whole, last - whole)

    return kernel
