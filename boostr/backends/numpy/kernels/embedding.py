"""y[t] = table[ids[t]] as f32, for tables in any form of `weights.py`; one token an item."""

from numba import int64

from boostr.backends.numpy.kernels.memory import f32, i32, i64, put, stack
from boostr.backends.numpy.kernels.simd import mul
from boostr.backends.numpy.kernels.weights import BLOCK, decoder


def gather(form: str, wide_ids: bool):
    """params: ids, rows, scales, y, E, V, bytes of a row, scales of a row, shift (`weights.py`)."""
    whole, partial = decoder(form)
    row_scale = form == "i8"

    def kernel(params, start, stop):
        E, V, shift = params[4], params[5], params[8]
        blocks, tail = E // BLOCK, E % BLOCK
        rest = f32(stack(BLOCK))
        for t in range(start, stop):
            if wide_ids:
                token = i64(params[0])[t]
            else:
                token = int64(i32(params[0])[t])
            token = min(max(token, 0), V - 1)
            row, scales = params[1] + token * params[6], params[2] + token * params[7] * 4
            y = f32(params[3]) + t * E
            for b in range(blocks):
                v = whole((row,), (scales,), b, shift)
                if row_scale:
                    v = mul(v, f32(scales)[0])
                put(y + b * BLOCK, v)
            if tail != 0:
                v = partial((row,), (scales,), blocks, shift, tail)
                if row_scale:
                    v = mul(v, f32(scales)[0])
                put(rest, v)
                for e in range(tail):
                    y[blocks * BLOCK + e] = rest[e]

    return kernel
