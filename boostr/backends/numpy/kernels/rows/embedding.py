"""y[t] = table[ids[t]] as f32, for tables in any form of `weights.py`; one token an item."""

from numba import int64

from boostr.backends.numpy.kernels.products.weights import BLOCK, decoder
from boostr.backends.numpy.kernels.runtime.memory import f32, i32, i64, put, stack
from boostr.backends.numpy.kernels.runtime.simd import inline, mul


def decode_row(whole, partial, row_scale: bool):
    """decode(row, scales, y, E, shift): one row of E elements as f32, by those of a `decoder`."""

    @inline
    def decode(row, scales, y, E, shift):
        blocks, tail = E // BLOCK, E % BLOCK
        for b in range(blocks):
            v = whole((row,), (scales,), b, shift)
            if row_scale:
                v = mul(v, f32(scales)[0])
            put(y + b * BLOCK, v)
        if tail != 0:
            rest = f32(stack(BLOCK))
            v = partial((row,), (scales,), blocks, shift, tail)
            if row_scale:
                v = mul(v, f32(scales)[0])
            put(rest, v)
            for e in range(tail):
                y[blocks * BLOCK + e] = rest[e]

    return decode


def gather(form: str, wide_ids: bool):
    """params: ids, rows, scales, y, E, V, bytes of a row, scales of a row, shift (`weights.py`)."""
    whole, partial = decoder(form)
    decode = decode_row(whole, partial, form == "i8")

    def kernel(params, start, stop):
        E, V = params[4], params[5]
        for t in range(start, stop):
            if wide_ids:
                token = i64(params[0])[t]
            else:
                token = int64(i32(params[0])[t])
            token = min(max(token, 0), V - 1)
            row, scales = params[1] + token * params[6], params[2] + token * params[7] * 4
            decode(row, scales, f32(params[3]) + t * E, E, params[8])

    return kernel
