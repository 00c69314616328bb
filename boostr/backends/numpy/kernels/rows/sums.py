"""The sum of a row."""

from boostr.backends.numpy.kernels.runtime.edges import load_upto
from boostr.backends.numpy.kernels.runtime.memory import load
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline, vector
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add


@inline
def row_sum(x, N):
    """Of N elements: lane by lane, then of the lanes."""
    total = vector(0.0)
    whole = N - N % LANES
    for e in range(0, whole, LANES):
        total = total + load(x, e)
    if whole < N:
        total = total + load_upto(x, whole, N - whole)
    return reduce_add(total)
