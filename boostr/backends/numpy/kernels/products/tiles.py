"""Register tiles of the matrix product: sizes, transposes and the outer-product step."""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, VECTORS
from boostr.backends.numpy.kernels.runtime.memory import at, count_mask, emit_read
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I32,
    I64,
    LANES,
    call,
    emit_fma,
    f32x,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.runtime import jit

COLUMN_VECTORS = jit.target().tile[1]
NR = COLUMN_VECTORS * LANES  # rows of w, columns of y, in one panel
_VF = ir.VectorType(F32, LANES)


def transpose(builder, vectors):
    """LANES vectors of LANES elements, transposed: log2(LANES) rounds of pairwise interleaving."""
    lanes, width = LANES, 1
    while width < lanes:
        out = list(vectors)
        for i in range(lanes):
            if i & width:
                continue
            a, b = vectors[i], vectors[i + width]
            low = [j if not j & width else lanes + j - width for j in range(lanes)]
            high = [j + width if not j & width else lanes + j for j in range(lanes)]
            kind = ir.VectorType(I32, lanes)
            out[i] = builder.shuffle_vector(a, b, ir.Constant(kind, low))
            out[i + width] = builder.shuffle_vector(a, b, ir.Constant(kind, high))
        vectors, width = out, width * 2
    return vectors


def _store(builder, value, address, offset):
    where = builder.inttoptr(builder.add(address, I64(offset)), ir.PointerType(value.type))
    builder.store(value, where, align=4)


@intrinsic
def outer(typingctx, a, b, acc):
    """acc[r, v] += a[r] * b[v]: a float at `a` for each row of the tile, NR floats at `b`."""

    def codegen(context, builder, sig, values):
        out = [builder.extract_value(values[2], i) for i in range(len(acc))]
        columns = []
        for v in range(COLUMN_VECTORS):
            where = builder.inttoptr(
                builder.add(values[1], I64(v * LANES * 4)), ir.PointerType(_VF)
            )
            columns.append(builder.load(where, align=4))
        for r in range(len(acc) // COLUMN_VECTORS):
            where = builder.inttoptr(builder.add(values[0], I64(r * 4)), ir.PointerType(F32))
            row = splat(builder, builder.load(where, align=4), LANES)
            for v in range(COLUMN_VECTORS):
                i = r * COLUMN_VECTORS + v
                out[i] = emit_fma(builder, row, columns[v], out[i])
        return context.make_tuple(builder, acc, out)

    return signature(acc, a, b, acc), codegen


@intrinsic
def transpose_block(typingctx, panel, source, stride):
    """LANES rows of 32: element k of row i, at source + i * stride, to panel[k * NR + i]."""

    def codegen(context, builder, sig, values):
        target, start, step = values
        rows = [builder.add(start, builder.mul(step, I64(i))) for i in range(LANES)]
        for v in range(VECTORS):
            vectors = [builder.load(at(builder, row, v * LANES * 4, _VF), align=4) for row in rows]
            for i, column in enumerate(transpose(builder, vectors)):
                _store(builder, column, target, (v * LANES + i) * NR * 4)
        return context.get_dummy_value()

    return signature(types.none, panel, source, stride), codegen


def _packed_columns(builder, rows, mask):
    """(element, first row, LANES rows) of a block of R rows of LANES elements at these addresses,
    in the order of the packed tile."""
    zeros = ir.Constant(_VF, [0.0] * LANES)
    vectors = [emit_read(builder, at(builder, row, 0, _VF), _VF, mask) for row in rows]
    vectors += [zeros] * (-len(rows) % LANES)
    groups = [transpose(builder, vectors[g : g + LANES]) for g in range(0, len(vectors), LANES)]
    for i in range(LANES):
        for g, columns in enumerate(groups):
            yield i, g * LANES, columns[i]


def _packer(whole: bool, doc: str):
    def op(typingctx, target, rows, k, count):
        many = len(rows)

        def codegen(context, builder, sig, values):
            base, row_tuple, offset, valid = values
            start = builder.mul(offset, I64(4))
            places = [builder.add(builder.extract_value(row_tuple, r), start) for r in range(many)]
            mask = None if whole else count_mask(builder, valid, LANES)
            for i, first, column in _packed_columns(builder, places, mask):
                where = at(builder, base, (i * many + first) * 4, _VF)
                if whole:
                    builder.store(column, where, align=4)
                    continue
                real = [int(first + lane < many) for lane in range(LANES)]
                keep = ir.Constant(ir.VectorType(ir.IntType(1), LANES), real)
                name = f"llvm.masked.store.v{LANES}f32.p0"
                call(builder, name, ir.VoidType(), [column, where, I32(1), keep])
            return context.get_dummy_value()

        return signature(types.none, types.int64, rows, types.int64, types.int64), codegen

    op.__doc__ = doc
    return intrinsic(op)


pack_block = _packer(
    False,
    """Writes LANES elements from k on of R rows of x, `count` of them real, to target[i * R + r].

    The rows come as a tuple of R int64 addresses. The last vector written is cut to what is left of
    R lanes, so that nothing past the tile is touched.
    """,
)
pack_whole_block = _packer(
    True,
    """The same of LANES real elements, with whole vectors: what they write past a row, and past the
    block, is for what is packed next to overwrite.""",
)

__all__ = ["BLOCK", "COLUMN_VECTORS", "NR", "f32x", "outer", "pack_block",
           "pack_whole_block", "transpose_block"]  # fmt: skip
