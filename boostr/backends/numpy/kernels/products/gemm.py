"""y = x wᵀ (+ bias) (+ residual) for many rows of x: the product runs from registers.

Two calls. `pack` lays x out in tiles of MR rows, [tiles, K rounded up to 32, MR], in a scratch
array. `product` takes one panel of NR rows of w against a range of these tiles: it decodes KC
columns of the panel into f32, transposed to [KC, NR] on its stack (it stays in L2), and for each
tile adds up MR x NR products in registers: per step of k, NR floats of the panel are loaded, MR
floats of the tile spread, and MR * NR / LANES fused multiply-adds done. The scheme is that of Goto
and van de Geijn (2008).
"""

from boostr.backends.numpy.kernels.products.codes import has_tail
from boostr.backends.numpy.kernels.products.tiles import (
    BLOCK,
    COLUMN_VECTORS,
    MR,
    NR,
    outer,
    pack_block,
    transpose_block,
)
from boostr.backends.numpy.kernels.products.weights import decoder, plane_rows, scales_last
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import (
    f32,
    load,
    load_n,
    put,
    spread,
    stack,
    store_n,
)
from boostr.backends.numpy.kernels.runtime.simd import LANES, fill, inline

X, LDX, SCALES, Y, LDY = layout.X, layout.LDX, layout.SCALES, layout.Y, layout.LDY
M, N, K, BIAS, RESIDUAL = layout.M, layout.N, layout.K, layout.BIAS, layout.RESIDUAL
LDR, PACKED, TILES_PER_ITEM = layout.LDR, layout.PACKED, layout.TILES_PER_ITEM
SOME = 4  # blocks of a row that are decoded before its neighbour's, and then transposed


@inline
def padded(length):
    """K rounded up to whole blocks: the depth of the packed tiles."""
    return (length + BLOCK - 1) // BLOCK * BLOCK


def pack():
    """Item t packs rows t MR .. t MR + MR - 1 of x; rows past M become zeros."""

    def kernel(params, start, stop):
        length, count = params[K], params[M]
        for tile in range(start, stop):
            first = tile * MR
            rows = spread(MR, params[X], params[LDX] * 4, first, count - 1)
            target = params[PACKED] + tile * padded(length) * MR * 4
            for k in range(0, length, LANES):
                pack_block(target + k * MR * 4, rows, k, min(length - k, LANES))

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
                store_n(y, n + j, value, count)

    return write


def panel_decoder(form):
    """decode(params, panel, some, n, k, here): `here` columns from k on of NR rows from n on, into
    panel [here rounded up to 32, NR]; `some` has room for SOME blocks of LANES rows."""
    whole, partial = decoder(form)
    rows_of, tails = plane_rows(form, 1), has_tail(form)
    stride = SOME * BLOCK * 4

    @inline
    def decode_blocks(params, some, n, first, here):
        """`here` inputs from block `first` on of LANES rows from n on, each row in turn."""
        for i in range(LANES):
            planes, target = rows_of(params, n + i, params[N] - 1), f32(some + i * stride)
            for b in range(here // BLOCK):
                put(target + b * BLOCK, whole(planes, first + b))
            if tails and here % BLOCK != 0:
                last = here // BLOCK
                put(target + last * BLOCK, partial(planes, first + last, here % BLOCK))

    @inline
    def decode_panel(params, panel, some, n, k, here):
        for v in range(COLUMN_VECTORS):
            target = panel + v * LANES * 4
            for done in range(0, here, SOME * BLOCK):
                count = min(here - done, SOME * BLOCK)
                decode_blocks(params, some, n + v * LANES, (k + done) // BLOCK, count)
                for b in range((count + BLOCK - 1) // BLOCK):
                    transpose_block(target, some + b * BLOCK * 4, stride)
                    target += BLOCK * NR * 4

    return decode_panel


def product(form, depth: int):
    """Item i: tiles (i % G) T .. of panel i // G; T = params[TILES_PER_ITEM], G = ceil(tiles / T).

    `depth` is KC, a multiple of 32.
    """
    decode_panel, write = panel_decoder(form), writer(MR, NR, scales_last(form))
    panel_floats, some_floats = depth * NR, LANES * SOME * BLOCK
    tile, tile_floats = MR * COLUMN_VECTORS, MR * NR

    def kernel(params, start, stop):
        length, per_item = params[K], params[TILES_PER_ITEM]
        tiles = (params[M] + MR - 1) // MR
        groups = (tiles + per_item - 1) // per_item
        panel, some, result = stack(panel_floats), stack(some_floats), f32(stack(tile_floats))
        for item in range(start, stop):
            n, first = item // groups * NR, item % groups * per_item
            for k in range(0, max(length, 1), depth):
                here = min(depth, length - k)
                decode_panel(params, panel, some, n, k, here)
                for t in range(first, min(first + per_item, tiles)):
                    a, b = params[PACKED] + (t * padded(length) + k) * MR * 4, panel
                    acc = fill(tile, 0.0)
                    for _ in range(here):
                        acc = outer(a, b, acc)
                        a += MR * 4
                        b += NR * 4
                    put(result, acc)
                    write(params, result, t, n, k)

    return kernel
