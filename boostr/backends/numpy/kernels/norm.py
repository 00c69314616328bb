"""y = x / sqrt(mean(x²) + eps) · (weight + offset), one row of E an item."""

import math

from numba import float32

from boostr.backends.numpy.kernels.memory import f32, float_param, load_n, store_n
from boostr.backends.numpy.kernels.simd import LANES, fma, vector
from boostr.backends.numpy.kernels.vmath import reduce_add


def rms_norm():
    def kernel(params, start, stop):
        weight, E = f32(params[1]), params[3]
        eps, offset = float_param(params[4]), float_param(params[5])
        for row in range(start, stop):
            x, y = f32(params[0]) + row * E, f32(params[2]) + row * E
            squares = vector(0.0)
            for e in range(0, E, LANES):
                v = load_n(x, e, E - e)
                squares = fma(v, v, squares)
            scale = float32(1.0) / math.sqrt(reduce_add(squares) / float32(E) + eps)
            for e in range(0, E, LANES):
                w = load_n(weight, e, E - e) + offset
                store_n(y, e, load_n(x, e, E - e) * scale * w, E - e)

    return kernel
