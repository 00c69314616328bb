"""Choosing tokens from rows of logits [V]."""

from boostr.backends.numpy.kernels.activation import largest
from boostr.backends.numpy.kernels.memory import f32, i32, load, load_n
from boostr.backends.numpy.kernels.simd import (
    LANES,
    equal,
    inline,
    iota,
    less,
    minimum,
    select,
    vector,
)
from boostr.backends.numpy.kernels.vmath import reduce_min

NONE = 0x7FFFFFFF


@inline
def first_equal(x, V, value):
    """The first index of `value`, NONE if it is not there."""
    found = vector(NONE)
    whole = V - V % LANES
    for e in range(0, whole, LANES):
        found = minimum(found, select(equal(load(x, e), value), iota() + e, NONE))
    if whole < V:
        n = V - whole
        index = select(less(iota(), n), iota() + whole, NONE)
        found = minimum(found, select(equal(load_n(x, whole, n), value), index, NONE))
    return reduce_min(found)


def argmax():
    """The first index of the largest of a row. params: x, y, V, inner, stride."""

    def kernel(params, start, stop):
        V = params[2]
        for row in range(start, stop):
            x = f32(params[0]) + ((row // params[3]) * params[4] + row % params[3] * V)
            best = first_equal(x, V, largest(x, V))
            i32(params[1])[row] = best if best < NONE else 0

    return kernel
