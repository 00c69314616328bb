"""Tables of row addresses and tuples read through them (see `simd.py` and `memory.py`)."""

from numba import types

from boostr.backends.numpy.kernels.runtime.memory import Pointer, element_at
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I64,
    LANES,
    Vec,
    emit_add,
    f32x,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.kernels.runtime.vmath import interleaved


@intrinsic
def pointers(typingctx, addresses, index, count):
    """f32 pointers made of the words index .. index + count - 1 (count a constant) of a table."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(Pointer("f32"), count.literal_value)

    def codegen(context, builder, sig, values):
        words = [
            builder.load(element_at(builder, values[0], builder.add(values[1], I64(i)), 8, I64))
            for i in range(len(result))
        ]
        return context.make_tuple(builder, result, words)

    return signature(result, addresses, types.int64, count), codegen


def _spread(builder, address, index):
    return splat(builder, builder.load(element_at(builder, address, index, 4, F32), align=4), LANES)


@intrinsic
def spread_at(typingctx, rows, index):
    """Element `index` of each f32 pointer of a tuple, each in all lanes of a vector."""
    result = types.UniTuple(f32x, len(rows))

    def codegen(context, builder, sig, values):
        bases = [builder.extract_value(values[0], i) for i in range(len(rows))]
        out = [_spread(builder, base, values[1]) for base in bases]
        return context.make_tuple(builder, result, out)

    return signature(result, rows, types.int64), codegen


@intrinsic
def spread_run(typingctx, row, index, count):
    """Elements index .. index + count - 1 (count a constant), each in all lanes of a vector."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(f32x, count.literal_value)

    def codegen(context, builder, sig, values):
        out = [
            _spread(builder, values[0], builder.add(values[1], I64(i))) for i in range(len(result))
        ]
        return context.make_tuple(builder, result, out)

    return signature(result, row, types.int64, count), codegen


@intrinsic
def load_run(typingctx, row, index, count):
    """`count` (a constant) vectors that lie one after the other from element `index` on."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(f32x, count.literal_value)

    def codegen(context, builder, sig, values):
        out = []
        for i in range(len(result)):
            at = builder.add(values[1], I64(i * LANES))
            out.append(builder.load(element_at(builder, values[0], at, 4, f32x.llvm), align=4))
        return context.make_tuple(builder, result, out)

    return signature(result, row, types.int64, count), codegen


@intrinsic
def sum_each(typingctx, vectors):
    """The vector whose lane i is the sum over the lanes of vectors[i], for a tuple of LANES."""
    if not isinstance(vectors.dtype, Vec) or len(vectors) != LANES:
        return None

    def codegen(context, builder, sig, values):
        parts = [builder.extract_value(values[0], i) for i in range(LANES)]
        width = LANES // 2
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [emit_add(builder, *interleaved(builder, a, b, width)) for a, b in pairs]
            width //= 2
        return parts[0]

    return signature(f32x, vectors), codegen
