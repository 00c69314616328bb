"""Rounding weights to int8 and decoding packed ones; a row [K] is an item. See `ops/quant.py`.

quantize: scale = absmax / 127 of each group of a row, values = rint(w / scale) in -127..127. The
quotients are rounded to float32 from float64, where a product with the inverse is near enough: the
kernels' fast-math flags let LLVM replace divisions by such products, and in float32 that shows.
"""

from numba import float32, float64

from boostr.backends.numpy.kernels.rows.embedding import OUT, WIDTH, row_decoder
from boostr.backends.numpy.kernels.runtime.memory import bf16, f16, f32, i8, load_n, stack, store
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    absolute,
    inline,
    maximum,
    rint,
    vector,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_max

_POINTERS = {"f32": f32, "bf16": bf16, "f16": f16}


@inline
def _round(w, values, buffer, first, last, scale):
    inverse = 1.0 / float64(scale) if scale > 0 else 1.0
    for e in range(first, last, LANES):
        store(buffer, 0, load_n(w, e, last - e))
        for i in range(min(last - e, LANES)):
            q = rint(float32(float64(buffer[i]) * inverse))
            values[e + i] = int(min(max(q, float32(-127.0)), float32(127.0)))


def quantize(form: str):
    """params: w, values, scales, K, group."""
    pointer = _POINTERS[form]

    def kernel(params, start, stop):
        K, group = params[3], params[4]
        groups, buffer = (K + group - 1) // group, f32(stack(LANES))
        for row in range(start, stop):
            w, values = pointer(params[0]) + row * K, i8(params[1]) + row * K
            for g in range(groups):
                first, last = g * group, min(K, (g + 1) * group)
                top = vector(0.0)
                for e in range(first, last, LANES):
                    top = maximum(top, absolute(load_n(w, e, last - e)))
                scale = float32(float64(reduce_max(top)) / 127.0)
                f32(params[2])[row * groups + g] = scale
                _round(w, values, buffer, first, last, scale)

    return kernel


def dequantize(form):
    """Item n is row n of a weight of any `Form`."""
    decode = row_decoder(form)

    def kernel(params, start, stop):
        for row in range(start, stop):
            decode(params, row, f32(params[OUT]) + row * params[WIDTH])

    return kernel
