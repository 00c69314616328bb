"""y = x wᵀ (+ bias) (+ residual) for many rows of x: the product runs from registers.

Two calls. `pack` lays x out in tiles of R rows, [tiles, K rounded up to 32, R], in a scratch
array. `product` takes one panel of NR rows of w against a range of these tiles: it decodes KC
columns of the panel into f32, transposed to [KC, NR] on its stack (it stays in L2), and for each
tile adds up R x NR products in registers: per step of k, NR floats of the panel are loaded, R
floats of the tile spread, and R * NR / LANES fused multiply-adds done. The scheme is that of Goto
and van de Geijn (2008).
"""

from boostr.backends.numpy.kernels.products.ahead import asker
from boostr.backends.numpy.kernels.products.codes import BLOCK
from boostr.backends.numpy.kernels.products.float_panels import panel_filler, some_floats
from boostr.backends.numpy.kernels.products.tiles import (
    COLUMN_VECTORS,
    NR,
    outer,
    pack_block,
    pack_whole_block,
)
from boostr.backends.numpy.kernels.products.weights import scales_last
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.edges import store_upto
from boostr.backends.numpy.kernels.runtime.memory import (
    f32,
    load,
    load_n,
    put,
    spread,
    stack,
)
from boostr.backends.numpy.kernels.runtime.simd import LANES, fill, inline

X, LDX, SCALES, Y, LDY = layout.X, layout.LDX, layout.SCALES, layout.Y, layout.LDY
M, N, K, BIAS, RESIDUAL = layout.M, layout.N, layout.K, layout.BIAS, layout.RESIDUAL
LDR, PACKED, TILES_PER_ITEM = layout.LDR, layout.PACKED, layout.TILES_PER_ITEM


@inline
def padded(length):
    """K rounded up to whole blocks: the depth of the packed tiles."""
    return (length + BLOCK - 1) // BLOCK * BLOCK


def pack(rows: int):
    """Item t packs tile t, of `rows` rows of x; those past M repeat the last one."""

    def kernel(params, start, stop):
        length, count = params[K], params[M]
        for tile in range(start, stop):
            xs = spread(rows, params[X], params[LDX] * 4, tile * rows, count - 1)
            target = params[PACKED] + tile * padded(length) * rows * 4
            last = (max(length, 1) - 1) // LANES * LANES
            for k in range(0, last, LANES):
                pack_whole_block(target + k * rows * 4, xs, k, LANES)
            for k in range(last, length, LANES):  # once, or never of no columns
                pack_block(target + k * rows * 4, xs, k, length - k)

    return kernel


def writer(rows: int, columns: int, row_scale: bool):
    """write(params, result, t, n, k): adds the tile of sums [rows, columns] at `result` to rows
    t * rows .. and columns n .. of y.

    The first part of the inputs (k = 0) sets y and brings bias and residual in, later ones add to
    it. `row_scale`: each row of w has a scale, which comes last.
    """

    @inline
    def write(params, result, t, n, k):
        real = min(columns, params[N] - n)
        for r in range(min(rows, params[M] - t * rows)):
            m = t * rows + r
            y, residual = f32(params[Y]) + m * params[LDY], f32(params[RESIDUAL]) + m * params[LDR]
            for j in range(0, real, LANES):
                count = real - j
                value = load(result, r * columns + j)
                if row_scale:
                    value *= load_n(f32(params[SCALES]), n + j, count)
                if k != 0:
                    value += load_n(y, n + j, count)
                elif params[BIAS] != 0:
                    value += load_n(f32(params[BIAS]), n + j, count)
                if k == 0 and params[RESIDUAL] != 0:
                    value += load_n(residual, n + j, count)
                store_upto(y, n + j, value, count)

    return write


def product(form, depth: int, rows: int):
    """Item i: tiles (i % G) T .. of panel i // G; T = params[TILES_PER_ITEM], G = ceil(tiles / T).

    `depth` is KC, a multiple of 32; `rows` those of a tile.
    """
    fill_panel, write, ask = (
        panel_filler(form),
        writer(rows, NR, scales_last(form)),
        asker(form, NR),
    )
    panel_floats, scratch = depth * NR, some_floats(form)
    tile, tile_floats = rows * COLUMN_VECTORS, rows * NR

    def kernel(params, start, stop):
        length, per_item = params[K], params[TILES_PER_ITEM]
        tiles = (params[M] + rows - 1) // rows
        groups = (tiles + per_item - 1) // per_item
        panel, some, result = stack(panel_floats), stack(scratch), f32(stack(tile_floats))
        for item in range(start, stop):
            n, first = item // groups * NR, item % groups * per_item
            end = min(first + per_item, tiles)
            for k in range(0, max(length, 1), depth):
                here = min(depth, length - k)
                fill_panel(params, panel, some, n, k, here)
                next_k = k + depth if k + depth < length else 0
                next_n = n if next_k > 0 else n + NR
                for t in range(first, end):
                    a, b = params[PACKED] + (t * padded(length) + k) * rows * 4, panel
                    acc = fill(tile, 0.0)
                    for done in range(0, here, BLOCK):
                        ask(params, next_n, (next_k + done) // BLOCK, t - first, end - first)
                        for _ in range(min(here - done, BLOCK)):
                            acc = outer(a, b, acc)
                            a += rows * 4
                            b += NR * 4
                    put(result, acc)
                    write(params, result, t, n, k)

    return kernel
