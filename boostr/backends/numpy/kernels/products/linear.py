"""y = x wᵀ (+ bias) (+ residual) for 1 to 8 rows of x: weights are read once, at memory speed.

x [M, K] f32, w [N, K] of any `Form`, y [M, N] f32. One item is a row of w. A step takes
a block of 32 elements of `rows` rows and multiplies it with the same block of all rows of x,
accumulating in rows * columns vectors of f32, which are added up at the end of the row.
"""

from boostr.backends.numpy.kernels.products.ahead import rows_ahead, scale_asker
from boostr.backends.numpy.kernels.products.codes import BLOCK, block_bytes, has_tail
from boostr.backends.numpy.kernels.products.weights import (
    contract,
    decoder,
    load_block,
    load_block_n,
    plane_rows,
    scales_last,
)
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import f32, prefetch, put, spread, stack
from boostr.backends.numpy.kernels.runtime.simd import fill, inline
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

X, LDX, SCALES, Y, LDY = layout.X, layout.LDX, layout.SCALES, layout.Y, layout.LDY
M, K, BIAS, RESIDUAL, LDR = layout.M, layout.K, layout.BIAS, layout.RESIDUAL, layout.LDR


@inline
def finish(params, value, m, n):
    """Adds bias and residual to one element of the product and writes it."""
    if params[BIAS] != 0:
        value += f32(params[BIAS])[n]
    if params[RESIDUAL] != 0:
        value += f32(params[RESIDUAL])[m * params[LDR] + n]
    f32(params[Y])[m * params[LDY] + n] = value


def gemv(form, columns: int, rows: int = 0):
    """`columns` >= M rows of x against `rows` rows of w at a time; one scale a row comes last.

    rows = 0 is the best for the form: plain floats and one x run at memory speed row by row;
    decoding forms share the loads of x between two rows, and ask for what they read in order of
    addresses (`ahead.py`).
    """
    rows = rows or (1 if columns == 1 and form.is_float else 2)
    asks, ask_scales = rows > 1, scale_asker(form, rows)
    whole, partial = decoder(form)
    rows_of, tails = plane_rows(form, rows), has_tail(form)
    step = block_bytes(form) * rows
    row_scale, sums = scales_last(form), 2 if rows * columns <= 4 else 1
    tile, write = rows * columns * sums, writer(columns, sums, row_scale)

    def kernel(params, start, stop):
        length, count = params[K], params[M]
        blocks, tail = length // BLOCK, length % BLOCK
        xs = spread(columns, params[X], params[LDX] * 4, 0, count - 1)
        results = f32(stack(tile))
        far = rows_ahead(params, rows)
        for n in range(start, stop, rows):
            ws = rows_of(params, n, stop - 1)
            acc = fill(tile, 0.0)
            ahead = ws[0] + far * params[layout.CODES + 1]
            if asks:
                ask_scales(params, n + far)
            for b in range(blocks):
                if asks:
                    prefetch(ahead + b * step, step, 2)
                acc = contract(whole(ws, b), load_block(xs, b), acc)
            if tails and tail != 0:
                x = load_block_n(xs, blocks, tail)
                acc = contract(partial(ws, blocks, tail), x, acc)
            put(results, reduce_add(acc))
            write(params, results, n, min(rows, stop - n))

    return kernel


def writer(columns: int, sums: int, row_scale: bool):
    """write(params, results, n, rows): y for `rows` rows of w from n on; `results` has `sums` parts
    of each sum, for each row those of `columns` rows of x."""

    @inline
    def write(params, results, n, rows):
        for r in range(rows):
            for m in range(params[M]):
                value = results[(r * columns + m) * sums]
                if sums == 2:
                    value += results[(r * columns + m) * sums + 1]
                if row_scale:
                    value *= f32(params[SCALES])[n + r]
                finish(params, value, m, n + r)

    return write
