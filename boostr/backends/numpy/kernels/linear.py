"""y = x wᵀ for few rows of x."""

from boostr.backends.numpy.kernels.memory import f32, load_n
from boostr.backends.numpy.kernels.simd import LANES, fill, fma
from boostr.backends.numpy.kernels.vmath import reduce_add


def gemv():
    def kernel(params, start, stop):
        x, y, K = f32(params[0]), f32(params[2]), params[3]
        for n in range(start, stop, 4):
            w0 = f32(params[1]) + n * K
            w = (w0, w0 + K, w0 + 2 * K, w0 + 3 * K)
            acc = fill(4, 0.0)
            for k in range(0, K, LANES):
                acc = fma(load_n(w, k, K - k), load_n(x, k, K - k), acc)
            sums = reduce_add(acc)
            for i in range(4):
                y[n + i] = sums[i]

    return kernel
