"""Loads and stores of up to LANES elements, masked only where a vector is not whole.

A loop runs `step(e, LANES)` over whole vectors and `step(e, rest)` once after it: inlined, the
first has no mask, which matters for stores (a masked store of AVX2 takes a dozen cycles on AMD).
"""

from boostr.backends.numpy.kernels.runtime.memory import load, load_n, store, store_n
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline, vector


@inline
def load_upto(pointer, index, count):
    """The first `count` of LANES elements, zeros after them."""
    return load(pointer, index) if count >= LANES else load_n(pointer, index, count)


@inline
def store_upto(pointer, index, value, count):
    """Writes the first `count` lanes of a vector."""
    if count >= LANES:
        store(pointer, index, value)
    else:
        store_n(pointer, index, value, count)


@inline
def clear(pointer, count):
    """Zeros `count` elements."""
    whole = count - count % LANES
    for e in range(0, whole, LANES):
        store(pointer, e, vector(0.0))
    for e in range(whole, count):
        pointer[e] = 0.0
