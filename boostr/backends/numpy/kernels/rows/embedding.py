"""y[t] = table[ids[t]] as f32 for tables of any `Form`, one token an item; the table's gradient."""

from numba import int64

from boostr.backends.numpy.kernels.products.codes import BLOCK, has_tail
from boostr.backends.numpy.kernels.products.weights import decoder, plane_rows, scales_last
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.edges import clear
from boostr.backends.numpy.kernels.runtime.memory import f32, i32, i64, load, put, stack, store
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline, mul

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


@inline
def _add_row(source, target, E):
    whole = E - E % LANES
    for e in range(0, whole, LANES):
        store(target, e, load(target, e) + load(source, e))
    for e in range(whole, E):
        target[e] = target[e] + source[e]


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


def gradient(wide_ids: bool):
    """params: g [T, E], ids [T], table [V, E], T, V, E, rows of an item.

    Item i has rows of the table of its own and adds to them, token by token in order, the g that
    are theirs: sums do not depend on who took which item.
    """

    def kernel(params, start, stop):
        T, V, E, size = params[3], params[4], params[5], params[6]
        for item in range(start, stop):
            first, last = item * size, min(V, item * size + size)
            clear(f32(params[2]) + first * E, (last - first) * E)
            for t in range(T):
                if wide_ids:
                    token = i64(params[1])[t]
                else:
                    token = int64(i32(params[1])[t])
                if first <= token < last:
                    _add_row(f32(params[0]) + t * E, f32(params[2]) + token * E, E)

    return kernel
