"""How stored weights become f32 vectors: one block of 32 elements of a row at a time.

form    stored                                             bytes per block
f32     32 f32                                             128
bf16    32 bf16                                            64
f16     32 f16                                             64
i8      32 int8; w = q, the caller scales the row          32
i8g     32 int8; w = scale[block >> shift] * q             32
q8_0    f16 d, 32 int8; w = d q                            34
q4_1    f16 d, f16 m, 16 bytes; w = d q + m; the low       20
        nibbles are elements 0..15, the high ones 16..31

A block is VECTORS = 32 / LANES vectors. Blocks may lie at any address. The two GGUF forms are as in
ggml-common.h (block_q8_0, block_q4_1).
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.runtime.memory import _count_mask, _read, decode
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    call,
    f32x,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.runtime import jit

BLOCK = 32
VECTORS = BLOCK // LANES
_ELEMENT = {"f32": (F32, 4), "bf16": (I16, 2), "f16": (I16, 2), "i8": (I8, 1), "i8g": (I8, 1)}
_BYTES = {"q8_0": 34, "q4_1": 20}
_VF, _VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def block_bytes(form: str) -> int:
    """Bytes of one block of 32 elements."""
    return _BYTES[form] if form in _BYTES else BLOCK * _ELEMENT[form][1]


def _constant(value, kind=_VI):
    return ir.Constant(kind, [value] * kind.count)


def _at(builder, address, offset, llvm):
    return builder.inttoptr(builder.add(address, I64(offset)), ir.PointerType(llvm))


def _half(builder, address, offset):
    """The f16 at `address + offset`, in all lanes as f32."""
    raw = builder.load(_at(builder, address, offset, I16), align=1)
    return decode(builder, splat(builder, raw, LANES), "f16")


def _bytes(builder, address, offset):
    """LANES bytes as i32, not sign-extended."""
    kind = ir.VectorType(I8, LANES)
    return builder.load(_at(builder, address, offset, kind), align=1)


def _flat(builder, form, address, count):
    """The block of a form without scales inside; `count` valid elements, None for all."""
    element, size = _ELEMENT[form]
    kind = ir.VectorType(element, LANES)
    stored = "i8" if form == "i8g" else form
    vectors = []
    for v in range(VECTORS):
        where = _at(builder, address, v * LANES * size, kind)
        mask = None
        if count is not None:
            mask = _count_mask(builder, builder.sub(count, I64(v * LANES)), LANES)
        vectors.append(decode(builder, _read(builder, where, kind, mask), stored))
    return vectors


def _q8_0(builder, address):
    d = _half(builder, address, 0)
    return [
        builder.fmul(decode(builder, _bytes(builder, address, 2 + v * LANES), "i8"), d)
        for v in range(VECTORS)
    ]


def _q4_1(builder, address):
    d, m = _half(builder, address, 0), _half(builder, address, 2)

    def fma(q):
        return call(builder, f"llvm.fma.v{LANES}f32", _VF, [q, d, m])

    quarters = [
        builder.zext(_bytes(builder, address, 4 + v * LANES), _VI)
        for v in range(max(1, VECTORS // 2))
    ]
    high = [builder.lshr(part, _constant(4)) for part in quarters]
    if jit.target().has("avx512f"):
        # All 16 values of the block, then one lookup for 16 weights; it reads only the low 4 bits.
        table = fma(ir.Constant(_VF, [float(i) for i in range(LANES)]))
        name = "llvm.x86.avx512.permvar.sf.512"
        return [call(builder, name, _VF, [table, part]) for part in quarters + high]
    low = [builder.and_(part, _constant(15)) for part in quarters]
    return [fma(builder.sitofp(part, _VF)) for part in low + high]


def block_vectors(builder, form, row, scales, block, shift, count=None):
    """The VECTORS LLVM vectors of one block of the row at address `row`."""
    address = builder.add(row, builder.mul(block, I64(block_bytes(form))))
    if form == "q8_0":
        return _q8_0(builder, address)
    if form == "q4_1":
        return _q4_1(builder, address)
    vectors = _flat(builder, form, address, count)
    if form != "i8g":
        return vectors
    offset = builder.mul(builder.ashr(block, shift), I64(4))
    scale = builder.load(
        builder.inttoptr(builder.add(scales, offset), ir.PointerType(F32)), align=1
    )
    wide = splat(builder, scale, LANES)
    return [builder.fmul(vector, wide) for vector in vectors]


def decoder(form: str):
    """Intrinsics (whole, partial) that decode block `block` of a tuple of R rows.

    whole(rows, scales, block, shift) and partial(rows, scales, block, shift, count) give R *
    VECTORS vectors, row by row; `rows` and `scales` are tuples of R int64 addresses, `count` < 32
    the number of elements that exist (zeros after them).
    """

    def make(rows, scales, block, shift, count=None):
        result = types.UniTuple(f32x, len(rows) * VECTORS)

        def codegen(context, builder, sig, values):
            tail = values[4] if count is not None else None
            out = []
            for r in range(len(rows)):
                row = builder.extract_value(values[0], r)
                scale = builder.extract_value(values[1], r)
                out += block_vectors(builder, form, row, scale, values[2], values[3], tail)
            return context.make_tuple(builder, result, out)

        tail_type = () if count is None else (types.int64,)
        return signature(result, rows, scales, types.int64, types.int64, *tail_type), codegen

    @intrinsic
    def whole(typingctx, rows, scales, block, shift):
        return make(rows, scales, block, shift)

    @intrinsic
    def partial(typingctx, rows, scales, block, shift, count):
        return make(rows, scales, block, shift, count)

    return whole, partial


def _columns(rows, block, count=None):
    """(signature, code) that loads a block of each row of x."""
    result = types.UniTuple(f32x, len(rows) * VECTORS)

    def codegen(context, builder, sig, values):
        tail = values[2] if count is not None else None
        offset = builder.mul(values[1], I64(BLOCK * 4))
        out = []
        for i in range(len(rows)):
            address = builder.add(builder.extract_value(values[0], i), offset)
            out += _flat(builder, "f32", address, tail)
        return context.make_tuple(builder, result, out)

    tail_type = () if count is None else (types.int64,)
    return signature(result, rows, types.int64, *tail_type), codegen


@intrinsic
def load_block(typingctx, rows, block):
    """Block `block` of a tuple of f32 rows (int64 addresses): VECTORS vectors for each."""
    return _columns(rows, block)


@intrinsic
def load_block_n(typingctx, rows, block, count):
    """`load_block` of which only `count` elements exist."""
    return _columns(rows, block, count)


@intrinsic
def contract(typingctx, w, x, acc):
    """acc[r, m] += sum over v of w[r, v] * x[m, v], for tuples of R V, M V and R M vectors."""
    rows, columns = len(w) // VECTORS, len(x) // VECTORS

    def codegen(context, builder, sig, values):
        ws, xs, out = (
            [builder.extract_value(value, i) for i in range(len(kind))]
            for value, kind in zip(values, (w, x, acc), strict=True)
        )
        for v in range(VECTORS):
            for r in range(rows):
                for m in range(columns):
                    operands = [ws[r * VECTORS + v], xs[m * VECTORS + v], out[r * columns + m]]
                    out[r * columns + m] = call(builder, f"llvm.fma.v{LANES}f32", _VF, operands)
        return context.make_tuple(builder, acc, out)

    return signature(acc, w, x, acc), codegen
