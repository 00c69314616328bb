"""RMS and layer normalisation of rows [E], with a residual added before, after or not; item = row.

rms:   y = h / sqrt(mean(h²) + eps) · (weight + offset)
layer: y = (h - mean(h)) / sqrt(mean((h - mean(h))²) + eps) · (weight + offset) + bias
h = x, or x + residual, which is then written too. `after`: residual + factor · y in y's place.
Sources: `boostr/ops/norm.py`, `boostr/nn/fusion.py`.
"""

from numba import float32

from boostr.backends.numpy.kernels.runtime.memory import (
    f32,
    float_param,
    load,
    load_n,
    store,
    store_n,
)
from boostr.backends.numpy.kernels.runtime.simd import LANES, fill, fma, inline, sqrt
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

STEP = 4 * LANES


@inline
def _four(x, e):
    return load(x, e), load(x, e + LANES), load(x, e + 2 * LANES), load(x, e + 3 * LANES)


@inline
def _add(x, residual, h, E):
    """h = x + residual."""
    whole = E - E % LANES
    for e in range(0, whole, LANES):
        store(h, e, load(x, e) + load(residual, e))
    if whole < E:
        n = E - whole
        store_n(h, whole, load_n(x, whole, n) + load_n(residual, whole, n), n)


@inline
def _sum(x, E):
    acc = fill(4, 0.0)
    whole = E - E % STEP
    for e in range(0, whole, STEP):
        acc = fma(_four(x, e), 1.0, acc)
    total = (acc[0] + acc[1]) + (acc[2] + acc[3])
    for e in range(whole, E, LANES):
        total = total + load_n(x, e, E - e)
    return reduce_add(total)


@inline
def _sum_squares(x, E):
    acc = fill(4, 0.0)
    whole = E - E % STEP
    for e in range(0, whole, STEP):
        v = _four(x, e)
        acc = fma(v, v, acc)
    total = (acc[0] + acc[1]) + (acc[2] + acc[3])
    for e in range(whole, E, LANES):
        v = load_n(x, e, E - e)
        total = fma(v, v, total)
    return reduce_add(total)


@inline
def _source(params, row, E, add):
    """The row to normalise: x's, or h's after the add."""
    inner = params[7]
    x = f32(params[0]) + ((row // inner) * params[8] + (row % inner) * E)
    if add:
        h = f32(params[5]) + row * E
        _add(x, f32(params[1]) + row * E, h, E)
        return h
    return x


def _finisher(after: bool):
    """finish(params, y, row, e, n, v): writes n elements v of a row's result from e on."""

    @inline
    def finish(params, y, row, e, n, v):
        if after:
            residual = f32(params[1]) + row * params[6]
            v = fma(v, float_param(params[11]), load_n(residual, e, n))
        store_n(y, e, v, n)

    return finish


def rms_norm(add: bool, after: bool):
    """params: x, residual, weight, 0, y, h, E, inner, stride, eps, offset, factor."""
    finish = _finisher(after)

    def kernel(params, start, stop):
        weight, E = f32(params[2]), params[6]
        eps, offset = float_param(params[9]), float_param(params[10])
        for row in range(start, stop):
            h, y = _source(params, row, E, add), f32(params[4]) + row * E
            mean = _sum_squares(h, E) / float32(E)
            scale = float32(1.0) / sqrt(mean + eps)
            whole = E - E % LANES
            for e in range(0, whole, LANES):
                v = load(h, e) * scale * (load(weight, e) + offset)
                finish(params, y, row, e, LANES, v)
            if whole < E:
                n = E - whole
                w = load_n(weight, whole, n) + offset
                finish(params, y, row, whole, n, load_n(h, whole, n) * scale * w)

    return kernel


@inline
def _centre(h, y, mean, E):
    """y = h - mean; the sum of its squares."""
    squares = fill(1, 0.0)[0]
    whole = E - E % LANES
    for e in range(0, whole, LANES):
        v = load(h, e) - mean
        store(y, e, v)
        squares = fma(v, v, squares)
    for e in range(whole, E):
        y[e] = h[e] - mean
    total = reduce_add(squares)
    for e in range(whole, E):
        total += y[e] * y[e]
    return total


def layer_norm(add: bool, after: bool):
    """params: x, residual, weight, bias or 0, y, h, E, inner, stride, eps, offset, factor."""
    finish = _finisher(after)

    def kernel(params, start, stop):
        weight, bias, E = f32(params[2]), f32(params[3]), params[6]
        has_bias, eps, offset = params[3] != 0, float_param(params[9]), float_param(params[10])
        for row in range(start, stop):
            h, y = _source(params, row, E, add), f32(params[4]) + row * E
            mean = _sum(h, E) / float32(E)
            variance = _centre(h, y, mean, E) / float32(E)
            scale = float32(1.0) / sqrt(variance + eps)
            for e in range(0, E, LANES):
                n = E - e
                v = load_n(y, e, n) * scale * (load_n(weight, e, n) + offset)
                if has_bias:
                    v = v + load_n(bias, e, n)
                finish(params, y, row, e, n, v)

    return kernel
