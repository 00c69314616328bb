"""Blocks of GGUF as planes (`boostr/quant/gguf/` says what they are); a row is an item.

params: where the planes begin (`layout.PLANES`), then the address of the blocks, the bytes of a row
of them, and blocks in a row. Blocks may lie at any address.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.weights import rows_at
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, decode, f32
from boostr.backends.numpy.kernels.runtime.simd import (
    I8,
    I16,
    I32,
    I64,
    constant,
    intrinsic,
    signature,
    splat,
)

BLOCKS, ROW_BYTES, COUNT = layout.BLOCKS, layout.BLOCK_ROW_BYTES, layout.BLOCK_COUNT
_Q6_K = ("codes", "high", "scales", "supers")


def fields(nbytes: int, parts: tuple):
    """Blocks of which all is copied: parts are (plane, first byte, bytes) of a block."""
    move = _mover(parts)
    rows_of = rows_at([layout.PLANES[name] for name, _, _ in parts], 1)

    def kernel(params, start, stop):
        for row in range(start, stop):
            planes, source = rows_of(params, row, row), params[BLOCKS] + row * params[ROW_BYTES]
            for b in range(params[COUNT]):
                move(planes, source + b * nbytes, b)

    return kernel


def _mover(parts):
    def op(typingctx, planes, source, index):
        def codegen(context, builder, sig, values):
            for i, (_, first, size) in enumerate(parts):
                kind = ir.VectorType(I8, size)
                raw = builder.load(at(builder, values[1], first, kind), align=1)
                _write(builder, builder.extract_value(values[0], i), values[2], 0, raw)
            return context.get_dummy_value()

        return signature(types.none, planes, source, index), codegen

    return intrinsic(op)


def _write(builder, plane, index, offset, value, stride=0):
    """Bytes `offset` on of what a plane has of block `index`; `stride` is all that it has of it."""
    stride = stride or value.type.count
    offset = builder.add(builder.mul(index, I64(stride)), I64(offset))
    builder.store(value, at(builder, plane, offset, value.type), align=1)


def q6_k():
    """256 inputs: 128 bytes of nibbles, 64 bytes of pairs of bits, 16 scales, f16."""
    rows_of = rows_at([layout.PLANES[name] for name in _Q6_K], 1)

    def kernel(params, start, stop):
        for row in range(start, stop):
            planes, source = rows_of(params, row, row), params[BLOCKS] + row * params[ROW_BYTES]
            for b in range(params[COUNT]):
                f32(planes[3])[b] = q6_k_block(planes, source + b * 210, b)

    return kernel


@intrinsic
def q6_k_block(typingctx, planes, source, index):
    """Writes the codes and scales of a block, gives its super-scale."""

    def codegen(context, builder, sig, values):
        codes, high, scales, _ = (builder.extract_value(values[0], i) for i in range(4))

        def read(offset, count):
            kind = ir.VectorType(I8, count)
            return builder.load(at(builder, values[1], offset, kind), align=1)

        for half in range(2):
            low = [read(64 * half + 32 * i, 32) for i in range(2)]
            nibbles = [_bits(builder, byte, shift, 15) for shift in (0, 4) for byte in low]
            pairs = read(128 + 32 * half, 32)
            for j, nibble in enumerate(nibbles):
                group = 4 * half + j
                packed = _joined(builder, nibble, 4)
                _write(builder, codes, values[2], 16 * group, packed, stride=128)
                packed = _joined(builder, _bits(builder, pairs, 2 * j, 3), 2)
                _write(builder, high, values[2], 8 * group, packed, stride=64)
        _write(builder, scales, values[2], 0, read(192, 16))
        raw = builder.load(at(builder, values[1], 208, I16), align=1)
        return builder.extract_element(decode(builder, splat(builder, raw, 4), "f16"), I32(0))

    return signature(types.float32, planes, source, index), codegen


def _bits(builder, value, shift, mask):
    """(value >> shift) & mask of each byte."""
    return builder.and_(
        builder.lshr(value, constant(shift, value.type)), constant(mask, value.type)
    )


def _joined(builder, value, bits):
    """32 numbers of so many bits in 4 * bits bytes: byte i has i, i + 4 bits, ... from below."""
    count = 4 * bits
    total = None
    for t in range(8 // bits):
        order = [t * count + i for i in range(count)]
        part = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, count), order))
        part = builder.shl(part, constant(t * bits, part.type)) if t else part
        total = part if total is None else builder.or_(total, part)
    return total
