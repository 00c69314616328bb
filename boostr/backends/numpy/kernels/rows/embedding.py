"""y[t] = table[ids[t]] as f32, for tables of any `Form`; one token an item."""

from numba import int64

from boostr.backends.numpy.kernels.products.codes import BLOCK, has_tail
from boostr.backends.numpy.kernels.products.weights import decoder, plane_rows, scales_last
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import f32, i32, i64, put, stack
from boostr.backends.numpy.kernels.runtime.simd import inline, mul

IDS, TABLE_ROWS, OUT, WIDTH = layout.IDS, layout.TABLE_ROWS, layout.OUT, layout.WIDTH
SCALES = layout.SCALES


def row_decoder(form):
    """decode(params, row, y): one row of WIDTH elements as f32."""
    whole, partial = decoder(form)
    rows_of, tails = plane_rows(form, 1), has_tail(form)
    row_scale = scales_last(form)

    @inline
    def decode(params, row, y):
        blocks, tail = params[WIDTH] // BLOCK, params[WIDTH] % BLOCK
        planes = rows_of(params, row, row)
        scale = f32(params[SCALES] + row * params[SCALES + 1])
        for b in range(blocks):
            v = whole(planes, b)
            if row_scale:
                v = mul(v, scale[0])
            put(y + b * BLOCK, v)
        if tails and tail != 0:
            rest = f32(stack(BLOCK))
            v = partial(planes, blocks, tail)
            if row_scale:
                v = mul(v, scale[0])
            put(rest, v)
            for e in range(tail):
                y[blocks * BLOCK + e] = rest[e]

    return decode


def gather(form, wide_ids: bool):
    """Item t is token t."""
    decode = row_decoder(form)

    def kernel(params, start, stop):
        for t in range(start, stop):
            if wide_ids:
                token = i64(params[IDS])[t]
            else:
                token = int64(i32(params[IDS])[t])
            token = min(max(token, 0), params[TABLE_ROWS] - 1)
            decode(params, token, f32(params[OUT]) + t * params[WIDTH])

    return kernel
