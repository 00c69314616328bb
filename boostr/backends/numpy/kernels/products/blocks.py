"""Products of small blocks in the cache, c (+)= a b, from registers; `gemm.py` has large ones.

c [m, n] is made in tiles of ROWS x NR sums. b [depth, n] and c lie in rows; element (i, k) of a is
at a + i · a_row + k · a_step bytes, so that a transposed block costs nothing.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.tiles import COLUMN_VECTORS, NR, transpose
from boostr.backends.numpy.kernels.runtime.memory import at
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I64,
    LANES,
    emit_fma,
    inline,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.runtime import jit

ROWS = 12 if jit.target().tile[0] >= 12 else 6
_VF = ir.VectorType(F32, LANES)


def _places(builder, address, row):
    """The vectors of a tile whose rows are `row` bytes apart."""
    for r in range(ROWS):
        start = builder.add(address, builder.mul(row, I64(r)))
        for v in range(COLUMN_VECTORS):
            yield at(builder, start, v * LANES * 4, _VF)


def _outer(builder, a, a_row, b, sums):
    """The tile's sums with a[r] · b[v] added, a column of a and a row of b."""
    out, right = (
        [],
        [builder.load(at(builder, b, v * LANES * 4, _VF), align=4) for v in range(COLUMN_VECTORS)],
    )
    for r in range(ROWS):
        where = at(builder, a, builder.mul(a_row, I64(r)), F32)
        left = splat(builder, builder.load(where, align=4), LANES)
        for v in range(COLUMN_VECTORS):
            out.append(emit_fma(builder, left, right[v], sums[len(out)]))
    return out


@intrinsic
def _tile(typingctx, a, a_row, a_step, b, b_row, c, c_row, depth, add):
    """One tile: c += a b if `add`, else c = a b. A loop in LLVM's own terms, whose sums stay in
    registers: numba takes long to type tuples of them."""
    added = add.literal_value if isinstance(add, types.Literal) else None
    if added is None:
        return None

    def codegen(context, builder, sig, values):
        a, a_row, a_step, b, b_row, c, c_row, depth = values[:8]
        if added:
            first = [builder.load(where, align=4) for where in _places(builder, c, c_row)]
        else:
            first = [ir.Constant(_VF, [0.0] * LANES)] * (ROWS * COLUMN_VECTORS)
        before = builder.block
        body, after = (builder.append_basic_block(name) for name in ("depth", "depth.end"))
        builder.branch(body)
        builder.position_at_end(body)
        left, right, k = (builder.phi(I64) for _ in range(3))
        sums = [builder.phi(_VF) for _ in first]
        out = _outer(builder, left, a_row, right, sums)
        following = (builder.add(left, a_step), builder.add(right, b_row), builder.add(k, I64(1)))
        for phi, start, next_ in zip((left, right, k), (a, b, I64(0)), following, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(next_, body)
        for phi, start, next_ in zip(sums, first, out, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(next_, body)
        builder.cbranch(builder.icmp_signed("<", following[2], depth), body, after)
        builder.position_at_end(after)
        for where, value in zip(_places(builder, c, c_row), out, strict=True):
            builder.store(value, where, align=4)
        return context.get_dummy_value()

    return signature(types.none, *(types.int64,) * 8, add), codegen


@inline
def multiply(a, a_row, a_step, b, b_row, c, c_row, m, n, depth, add):
    """c = a b, or c += a b with `add` (a constant); depth is 1 or more. Addresses, and bytes from
    row to row; m is rounded up to whole tiles of ROWS, n to NR, so the blocks must have that room.
    """
    for j in range(0, n, NR):
        for i in range(0, m, ROWS):
            _tile(
                a + i * a_row, a_row, a_step, b + j * 4, b_row, c + i * c_row + j * 4, c_row, depth,
                add,
            )  # fmt: skip


@intrinsic
def _transpose_square(typingctx, source, source_row, target, target_row):
    def codegen(context, builder, sig, values):
        source, step, target, row = values
        vectors = [
            builder.load(at(builder, source, builder.mul(step, I64(i)), _VF), align=4)
            for i in range(LANES)
        ]
        for i, column in enumerate(transpose(builder, vectors)):
            builder.store(column, at(builder, target, builder.mul(row, I64(i)), _VF), align=4)
        return context.get_dummy_value()

    numbers = (types.int64,) * 4
    return signature(types.none, *numbers), codegen


@inline
def transpose_block(source, source_row, target, target_row, m, n):
    """target [n, m] = sourceᵀ, source [m, n]; m and n are rounded up to LANES."""
    for i in range(0, m, LANES):
        for j in range(0, n, LANES):
            _transpose_square(
                source + i * source_row + j * 4, source_row, target + j * target_row + i * 4,
                target_row,
            )  # fmt: skip
