"""Blocks of GGUF as planes, by the description that `boostr/quant/gguf` has of them; a row is an
item.

params: where the planes begin (`layout.PLANES`), then the address of the blocks, the bytes of a row
of them, and blocks in a row. Blocks may lie at any address.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.weights import rows_at
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, decode
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    constant,
    intrinsic,
    signature,
    splat,
)
from boostr.quant.scheme import FIELDS, PACK

BLOCKS, ROW_BYTES, COUNT = layout.BLOCKS, layout.BLOCK_ROW_BYTES, layout.BLOCK_COUNT


def blocks(nbytes: int, size: int, bits: int, fields, codes, halves, small):
    """Blocks of `size` inputs whose codes have so many bits; the rest is as in a `BlockType`."""
    high = ("codes", "high")[: len(FIELDS[bits])] if codes else ()
    described = [*(part[0] for part in (*fields, *halves)), *(part.part for part in small)]
    names = dict.fromkeys([*described, *high])
    rows_of = rows_at([layout.PLANES[name] for name in names], 1)
    move = _mover(tuple(names), size, bits, fields, codes, halves, small)

    def kernel(params, start, stop):
        for row in range(start, stop):
            planes, source = rows_of(params, row, row), params[BLOCKS] + row * params[ROW_BYTES]
            for b in range(params[COUNT]):
                move(planes, source + b * nbytes, b)

    return kernel


def _mover(names, size, bits, fields, codes, halves, small):
    def op(typingctx, planes, source, index):
        def codegen(context, builder, sig, values):
            block = _Block(builder, names, *values)
            for name, first, count in fields:
                block.write(name, 0, block.read(first, count))
            for group in range(0, size if codes else 0, PACK):
                _write_codes(block, group, bits, codes)
            for name, first, factor in halves:
                block.write(name, 0, _half(block, first, factor))
            for part in small:
                _write_small(block, part)
            block.finish()
            return context.get_dummy_value()

        return signature(types.none, planes, source, index), codegen

    return intrinsic(op)


class _Block:
    """The block `index` of a row, at the address `source`."""

    def __init__(self, builder, names, planes, source, index):
        self.builder, self.source, self.index = builder, source, index
        self.planes = {name: builder.extract_value(planes, i) for i, name in enumerate(names)}
        self.written = []

    def read(self, first, count):
        kind = ir.VectorType(I8, count)
        return self.builder.load(at(self.builder, self.source, first, kind), align=1)

    def write(self, name, offset, value):
        """A vector goes to byte `offset` of what the plane has of the block."""
        self.written.append((name, offset, value))

    def finish(self):
        """Stores all that is written: only now is known how much a plane has of a block."""
        builder, sizes = self.builder, dict.fromkeys(self.planes, 0)
        for name, _, value in self.written:
            sizes[name] += value.type.count * _BYTES[value.type.element]
        for name, offset, value in self.written:
            place = builder.add(builder.mul(self.index, I64(sizes[name])), I64(offset))
            builder.store(value, at(builder, self.planes[name], place, value.type), align=1)


_BYTES = {I8: 1, F32: 4}


def _half(block, first, factor):
    """factor times a float16, a vector of one."""
    builder = block.builder
    raw = builder.load(at(builder, block.source, first, I16), align=1)
    value = decode(builder, splat(builder, raw, 4), "f16")
    one = builder.shuffle_vector(value, value, constant([0], ir.VectorType(I32, 1)))
    if abs(factor) == 1:
        return builder.fneg(one) if factor < 0 else one
    return builder.fmul(one, constant(factor, one.type))


def _write_small(block, small):
    builder, total = block.builder, constant(0, ir.VectorType(I8, small.count))
    for lane in small.lanes:
        found = block.read(lane.first, len(lane.numbers))
        found = _bits(builder, found, lane.low, (1 << lane.bits) - 1, lane.shift)
        order = [len(lane.numbers)] * small.count  # a zero, where the lane has no number
        for i, number in enumerate(lane.numbers):
            order[number] = i
        order = constant(order, ir.VectorType(I32, small.count))
        total = builder.or_(total, builder.shuffle_vector(found, constant(0, found.type), order))
    block.write(small.part, 0, builder.add(total, constant(small.added, total.type)))


def _write_codes(block, group, bits, codes):
    """The PACK codes from number `group` on, into the planes of their fields."""
    builder, total, shift = block.builder, constant(0, ir.VectorType(I8, PACK)), 0
    for field in codes:
        total = builder.or_(total, _numbers(block, group, field))
    for name, width in zip(("codes", "high"), FIELDS[bits], strict=False):
        packed = _joined(builder, _bits(builder, total, shift, (1 << width) - 1, 0), width)
        block.write(name, group * width // 8, packed)
        shift += width


def _numbers(block, group, field):
    """A field of PACK numbers, in its place of a byte; `quant.gguf.block.Bits` says where it is."""
    builder, turns = block.builder, 8 // field.bits
    places = []  # (byte, shift) of each number
    for number in range(group, group + PACK):
        run, within = divmod(number, field.run * turns)
        places.append((field.first + run * field.run + within % field.run, within // field.run))
    first = min(byte for byte, _ in places)
    raw = block.read(first, max(byte for byte, _ in places) - first + 1)
    order = [byte - first for byte, _ in places]
    value = builder.shuffle_vector(raw, raw, constant(order, ir.VectorType(I32, PACK)))
    if field.bits == 1:  # bytes have no shifts by numbers of their own
        mask = constant([1 << turn for _, turn in places], value.type)
        there = builder.icmp_unsigned("!=", builder.and_(value, mask), constant(0, value.type))
        return builder.select(
            there, constant(1 << field.shift, value.type), constant(0, value.type)
        )
    return _bits(
        builder,
        value,
        [field.bits * turn for _, turn in places],
        (1 << field.bits) - 1,
        field.shift,
    )


def _bits(builder, value, right, mask, left):
    """(value >> right & mask) << left of each byte."""
    value = builder.and_(
        builder.lshr(value, constant(right, value.type)), constant(mask, value.type)
    )
    return builder.shl(value, constant(left, value.type)) if left else value


def _joined(builder, value, bits):
    """32 numbers of so many bits in 4 * bits bytes: byte i has i, i + 4 bits, ... from below."""
    count = 4 * bits
    total = constant(0, ir.VectorType(I8, count))
    for t in range(8 // bits):
        order = constant([t * count + i for i in range(count)], ir.VectorType(I32, count))
        part = builder.shuffle_vector(value, value, order)
        total = builder.or_(total, builder.shl(part, constant(t * bits, part.type)))
    return total
