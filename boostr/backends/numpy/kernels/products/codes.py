"""How codes become f32 vectors: one block of 32 inputs of a row, as VECTORS = 32 / LANES of them.

Codes of fewer than 8 bits lie in a field of bits or in two, the planes "codes" and "high" (layout:
`boostr/quant/scheme.py`). One function reads a field of any width, and numbers that codes stand for
are looked up in registers. Planes may lie at any address.
"""

from llvmlite import ir

from boostr.backends.numpy.kernels.runtime.memory import at, count_mask, decode, emit_read
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    call,
    constant,
    splat,
)
from boostr.quant.scheme import FIELDS

BLOCK = 32
VECTORS = BLOCK // LANES
STORED = {
    "f32": (F32, 4), "f16": (I16, 2), "bf16": (I16, 2), "i8": (I8, 1), "u8": (I8, 1),
    "e8m0": (I8, 1), "e4m3": (I8, 1), "c8": (I8, 1),
}  # fmt: skip
_VF, _VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
# looks up LANES numbers for the low bits of a vector of indices
_PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}.get(LANES)


def fields(form) -> tuple[int, ...]:
    """Bits of a code in the planes "codes" and "high"; () where an element is a whole code."""
    bits = int(form.codes[1:]) if form.codes[0] == "c" else 8
    return FIELDS[bits] if bits < 8 else ()


def block_bytes(form) -> int:
    """Bytes of one block in the plane "codes"."""
    packed = fields(form)
    return 4 * packed[0] if packed else BLOCK * STORED[form.codes][1]


def has_tail(form) -> bool:
    """Whether a row may end within a block: codes of less than a byte are packed in whole ones."""
    return not fields(form)


def elements(builder, stored: str, address, count):
    """A block of elements that lie one after the other; `count` of them exist, None: all do."""
    element, size = STORED[stored]
    kind = ir.VectorType(element, LANES)
    vectors = []
    for v in range(VECTORS):
        where = at(builder, address, v * LANES * size, kind)
        mask = None
        if count is not None:
            mask = count_mask(builder, builder.sub(count, I64(v * LANES)), LANES)
        raw = emit_read(builder, where, kind, mask)
        vectors.append(decode(builder, raw, "i8" if stored == "c8" else stored))
    return vectors


def numbers(builder, form, row, block, count=None):
    """What a block's codes stand for, less `zero`; floats as they are."""
    if has_tail(form):
        address = builder.add(row["codes"], builder.mul(block, I64(block_bytes(form))))
        found = elements(builder, form.codes, address, count)
    elif form.table:
        table = constant(table_of(form), ir.VectorType(F32, 1 << sum(fields(form))))
        found = [lookup(builder, table, part) for part in indices(builder, form, row, block)]
    else:
        mask = constant((1 << sum(fields(form))) - 1, _VI)
        codes = indices(builder, form, row, block)
        found = [builder.sitofp(builder.and_(part, mask), _VF) for part in codes]
    if not form.zero:
        return found
    return [builder.fsub(part, constant(float(form.zero), _VF)) for part in found]


def table_of(form) -> list[float]:
    """The number that each code of fewer than 8 bits stands for."""
    count = 1 << sum(fields(form))
    numbers_ = [*form.table] if form.table else [float(i) for i in range(count)]
    return numbers_ + [0.0] * (count - len(numbers_))


def indices(builder, form, row, block):
    """A block's codes of fewer than 8 bits as i32; there may be other bits above them."""
    low, *high = fields(form)
    found = _field(builder, row["codes"], block, low)
    for bits in high:
        above = _field(builder, row["high"], block, bits)
        below, shift = constant((1 << low) - 1, _VI), constant(low, _VI)
        found = [
            builder.or_(builder.and_(a, below), builder.shl(b, shift))
            for a, b in zip(found, above, strict=True)
        ]
    return found


def _field(builder, plane, block, bits):
    """A field of so many bits, with others above it: that of input i begins at bit bits * (i // s)
    of byte i % s of the s = 4 * bits bytes that a block has."""
    size = 4 * bits
    address = builder.add(plane, builder.mul(block, I64(size)))
    kind = ir.VectorType(I8, min(size, LANES))
    found = []
    for first in range(0, BLOCK, LANES):
        raw = builder.load(at(builder, address, first % size, kind), align=1)
        if kind.count < LANES:
            raw = builder.shuffle_vector(raw, raw, constant([i % size for i in range(LANES)], _VI))
        shifts = [bits * (i // size) for i in range(first, first + LANES)]
        found.append(builder.lshr(builder.zext(raw, _VI), constant(shifts, _VI)))
    return found


def lookup(builder, table, index):
    """table[i] for a vector of i32 of which the low bits count; `table` is 2**n f32."""
    count = table.type.count
    if _PERMUTE and count <= LANES:
        order = constant([i % count for i in range(LANES)], _VI)
        return call(builder, _PERMUTE, _VF, [builder.shuffle_vector(table, table, order), index])
    if count == 1:
        return splat(builder, builder.extract_element(table, I32(0)), LANES)
    half = count // 2
    parts = []
    for first in (0, half):
        order = constant([first + i for i in range(half)], ir.VectorType(I32, half))
        parts.append(lookup(builder, builder.shuffle_vector(table, table, order), index))
    bit = builder.and_(index, constant(half, _VI))
    above = builder.icmp_signed("!=", bit, constant(0, _VI))
    return builder.select(above, parts[1], parts[0])
