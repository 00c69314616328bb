"""Gradients of the norms on rows h [E] with statistics computed anew; an item is a group of rows.

With d = h - mean(h) (rms: d = h), r = 1 / sqrt(mean(d²) + eps), c = g · (weight + offset):
    dh = r (c - mean(c) - d r² mean(c d)) + passed         (rms: without mean(c))
    dweight = Σ g d r, dbias = Σ g                         over rows
A group adds up its rows' part of the weights' gradients; `weights` adds up the groups in order, so
sums do not depend on who took which item. Sources: `boostr/ops/norm.py`.
"""

from numba import float32

from boostr.backends.numpy.kernels.rows.sums import row_sum
from boostr.backends.numpy.kernels.runtime.edges import clear, load_upto, store_upto
from boostr.backends.numpy.kernels.runtime.memory import f32, float_param
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    fma,
    inline,
    iota,
    less,
    select,
    sqrt,
    vector,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add


@inline
def _terms(g, h, weight, offset, mean, sums, e, n):
    """sums = (Σ d², Σ c, Σ c d) with the elements e .. e + n added."""
    d = load_upto(h, e, n) - mean
    c = load_upto(g, e, n) * (load_upto(weight, e, n) + offset)
    if n < LANES:
        d = select(less(iota(), n), d, 0.0)
    return fma(d, d, sums[0]), sums[1] + c, fma(c, d, sums[2])


@inline
def _sums(g, h, weight, offset, mean, E):
    sums = (vector(0.0), vector(0.0), vector(0.0))
    whole = E - E % LANES
    for e in range(0, whole, LANES):
        sums = _terms(g, h, weight, offset, mean, sums, e, LANES)
    if whole < E:
        sums = _terms(g, h, weight, offset, mean, sums, whole, E - whole)
    return reduce_add(sums[0]), reduce_add(sums[1]), reduce_add(sums[2])


def rows(layer: bool, passed: bool, wants: bool):
    """params: g, passed, h, weight, dh, sums [groups, 1 + layer, E], rows, rows of a group, E, eps,
    offset. `wants`: the weights' gradients."""
    parts = 1 + layer

    @inline
    def step(pointers, weight, scale, numbers, e, n):
        g, through, h, dh, dw, db = pointers
        mean, offset, level, tilt = numbers
        slope, d = load_upto(g, e, n), load_upto(h, e, n) - mean
        c = slope * (load_upto(weight, e, n) + offset)
        out = scale * (c - level - d * tilt)
        if passed:
            out = out + load_upto(through, e, n)
        store_upto(dh, e, out, n)
        if wants:
            store_upto(dw, e, fma(slope, d * scale, load_upto(dw, e, n)), n)
            if layer:
                store_upto(db, e, slope + load_upto(db, e, n), n)

    def kernel(params, start, stop):
        weight, count, size, E = f32(params[3]), params[6], params[7], params[8]
        eps, offset = float_param(params[9]), float_param(params[10])
        whole = E - E % LANES
        for group in range(start, stop):
            dw = f32(params[5]) + group * parts * E
            db = dw + E
            if wants:
                clear(dw, parts * E)
            for row in range(group * size, min(count, (group + 1) * size)):
                g, h = f32(params[0]) + row * E, f32(params[2]) + row * E
                through, dh = f32(params[1]) + row * E, f32(params[4]) + row * E
                mean = row_sum(h, E) / float32(E) if layer else float32(0.0)
                squares, flat, crossed = _sums(g, h, weight, offset, mean, E)
                scale = float32(1.0) / sqrt(squares / float32(E) + eps)
                level = flat / float32(E) if layer else float32(0.0)
                numbers = (mean, offset, level, crossed / float32(E) * scale * scale)
                pointers = (g, through, h, dh, dw, db)
                for e in range(0, whole, LANES):
                    step(pointers, weight, scale, numbers, e, LANES)
                if whole < E:
                    step(pointers, weight, scale, numbers, whole, E - whole)

    return kernel


def weights():
    """params: sums [groups, width], result [width], groups, width. An item is a vector of it."""

    def kernel(params, start, stop):
        groups, width = params[2], params[3]
        for item in range(start, stop):
            e, total = item * LANES, vector(0.0)
            for group in range(groups):
                total = total + load_upto(f32(params[0]) + group * width, e, width - e)
            store_upto(f32(params[1]), e, total, width - e)

    return kernel
