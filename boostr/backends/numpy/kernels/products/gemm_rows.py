"""y = a b for b [K, N] in rows, and aᵀ packed from rows: the products of linear's gradients.

As in `gemm.py`, tiles of R rows of a are packed, and NR columns of b lie in a panel on the stack;
but a call takes only DEPTH of the K inputs, whose tiles stay in the cache while panel after panel
meets them: gradients have as many inputs as the batch has tokens or the vocabulary words.
"""

from boostr.backends.numpy.kernels.products.gemm import padded, writer
from boostr.backends.numpy.kernels.products.tiles import COLUMN_VECTORS, NR, outer
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.edges import load_upto
from boostr.backends.numpy.kernels.runtime.memory import bf16, f16, f32, put, stack, store
from boostr.backends.numpy.kernels.runtime.simd import LANES, fill, inline

X, LDX, M, N, K, PACKED = layout.X, layout.LDX, layout.M, layout.N, layout.K, layout.PACKED
CODES, TILES_PER_ITEM, FIRST = layout.CODES, layout.TILES_PER_ITEM, layout.FIRST_INPUT


def pack_columns(rows: int):
    """`gemm.pack` of xᵀ, x [K, M]: item t packs `rows` columns of x."""

    def kernel(params, start, stop):
        length, count = params[K], params[M]
        for tile in range(start, stop):
            target = params[PACKED] + tile * padded(length) * rows * 4
            source = params[X] + tile * rows * 4
            real = min(rows, count - tile * rows)
            for _ in range(length - 1):  # whole vectors, whose surplus the next ones overwrite
                for r in range(0, rows, LANES):
                    store(f32(target), r, load_upto(f32(source), r, real - r))
                source += params[LDX] * 4
                target += rows * 4
            for r in range(real if length > 0 else 0):
                f32(target)[r] = f32(source)[r]

    return kernel


def product(codes: str, depth: int, rows: int):
    """Inputs FIRST_INPUT .. + depth of a b, set for the first and added for others. Item i: tiles
    (i // P) T .. of panel i % P; T = TILES_PER_ITEM, P panels of NR columns."""
    pointer, write = {"f32": f32, "bf16": bf16, "f16": f16}[codes], writer(rows, NR, False)
    panel_floats, tile, tile_floats = depth * NR, rows * COLUMN_VECTORS, rows * NR

    @inline
    def fill_panel(params, panel, n, k, here):
        row = params[CODES] + k * params[CODES + 1]
        for _ in range(here):
            for v in range(0, NR, LANES):
                store(f32(panel), v, load_upto(pointer(row), n + v, params[N] - n - v))
            row += params[CODES + 1]
            panel += NR * 4

    def kernel(params, start, stop):
        k, length, per_item = params[FIRST], params[K], params[TILES_PER_ITEM]
        here = min(depth, length - k)
        tiles = (params[M] + rows - 1) // rows
        panels = (params[N] + NR - 1) // NR
        panel, result = stack(panel_floats), f32(stack(tile_floats))
        for item in range(start, stop):
            n, first = item % panels * NR, item // panels * per_item
            fill_panel(params, panel, n, k, here)
            for t in range(first, min(first + per_item, tiles)):
                a, b = params[PACKED] + (t * padded(length) + k) * rows * 4, panel
                acc = fill(tile, 0.0)
                for _ in range(here):
                    acc = outer(a, b, acc)
                    a += rows * 4
                    b += NR * 4
                put(result, acc)
                write(params, result, t, n, k)

    return kernel
