"""How codes and scales of a step of a row become operands of integer dot products.

A step is STEP blocks of 32 inputs, one for each four lanes of 32 bits: two vectors of 4 LANES
unsigned bytes, the inputs 0..15 of each block and the inputs 16..31. Planes lie so that most bytes
are in this order already (`boostr/quant/scheme.py`). The number that code byte u stands for is
u - bias(form) - zero, before its group's scale, zero point and offset.

Of a row's last step only `valid` blocks may exist: what follows is not read and is 0, and its
scales are those of the last block.
"""

from llvmlite import ir

from boostr.backends.numpy.kernels.products.codes import BLOCK, STORED, fields, table_of
from boostr.backends.numpy.kernels.products.weights import scales_last
from boostr.backends.numpy.kernels.runtime.memory import at, count_mask, decode, emit_read
from boostr.backends.numpy.kernels.runtime.simd import F32, I8, I16, I32, I64, LANES, call, constant
from boostr.backends.numpy.runtime import jit

STEP, ROWS = LANES // 4, 4
BYTES = 4 * LANES  # of a vector
VF, VI, VB = (ir.VectorType(e, n) for e, n in ((F32, LANES), (I32, LANES), (I8, BYTES)))
VW = ir.VectorType(I16, 2 * LANES)
SIGNED = jit.target().has("dotprod")  # whether the dot product takes codes as signed bytes
_SHUFFLE = {
    16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b", 4: "llvm.x86.ssse3.pshuf.b.128",
}  # fmt: skip


# ---------------------------------------------------------------- codes


def is_wide(form) -> bool:
    """Whether numbers are signed bytes."""
    return bool(form.table) or form.codes == "c8"


def bias(form) -> int:
    """What is added to numbers that are signed, so that bytes are not; sdot wants them signed."""
    return 128 if is_wide(form) and not SIGNED else 0


def centre(form) -> int:
    """The middle of the code bytes."""
    return bias(form) if is_wide(form) else 1 << (sum(fields(form)) - 1)


def parts(form) -> int:
    """Into how many groups of inputs the 32 of a block fall."""
    return 2 if form.group == 16 else 1


def step_codes(builder, form, row, block, valid=None):
    """(inputs 0..15 of STEP blocks, inputs 16..31), as unsigned bytes."""
    if form.codes == "c8":
        halves = _bytes(builder, row["codes"], block, valid)
        return [number_bytes(builder, form, half) for half in halves]
    low, *high = fields(form)
    halves = _field(builder, row["codes"], block, valid, low, 0)
    for bits in high:
        above = _field(builder, row["high"], block, valid, bits, low)
        halves = [builder.or_(*both) for both in zip(halves, above, strict=True)]
    return [number_bytes(builder, form, half) for half in halves]


def number_bytes(builder, form, codes):
    """A vector of code bytes from one of codes as they are stored, a code in each byte."""
    if form.codes == "c8":
        return builder.xor(codes, constant(bias(form), VB))
    if not form.table:
        return codes
    numbers = [int(value) + bias(form) for value in table_of(form)]
    return _shuffle(builder, constant(numbers * (BYTES // len(numbers)), VB), codes)


def byte_words(builder, codes):
    """The even and the odd bytes of a vector, each as a vector of words."""
    words = builder.bitcast(codes, VW)
    return builder.and_(words, constant(255, VW)), builder.lshr(words, constant(8, VW))


def _shuffle(builder, table, index):
    """table[i] for bytes i < 16."""
    if jit.target().has("neon"):
        return call(builder, "llvm.aarch64.neon.tbl1.v16i8", VB, [table, index])
    return call(builder, _SHUFFLE[LANES], VB, [table, index])


def _load(builder, plane, block, valid, size, kind):
    """`size` bytes of each of STEP blocks, as a vector of this type."""
    words = ir.VectorType(I32, size * STEP // 4)
    mask = None
    if valid is not None:
        mask = count_mask(builder, builder.mul(valid, I64(size // 4)), words.count)
    where = at(builder, plane, builder.mul(block, I64(size)), words)
    return builder.bitcast(emit_read(builder, where, words, mask), kind)


def _field(builder, plane, block, valid, bits, place):
    """A field of so many bits of each input, at bit `place` of its byte; the others are 0.

    Of the words of 4 * bits bytes that a block has, a half of its inputs lies in `turns` = 4 / bits
    copies, shifted further by `bits` from one to the next.
    """
    turns, element = 4 // bits, I32 if bits == 1 else I64
    kind = ir.VectorType(element, 8 * BYTES // element.width)
    raw = _load(builder, plane, block, valid, 4 * bits, ir.VectorType(element, kind.count // turns))
    if turns > 1:
        order = constant([i // turns for i in range(kind.count)], ir.VectorType(I32, kind.count))
        raw = builder.shuffle_vector(raw, raw, order)
    mask = constant(((1 << bits) - 1) << place, VB)
    halves = []
    for half in range(2):
        shifts = [bits * (half * turns + i % turns) - place for i in range(kind.count)]
        value = raw
        if min(shifts) < 0:
            value = builder.shl(value, constant([max(-s, 0) for s in shifts], kind))
        if max(shifts) > 0:
            value = builder.lshr(value, constant([max(s, 0) for s in shifts], kind))
        halves.append(builder.and_(builder.bitcast(value, VB), mask))
    return halves


def _bytes(builder, plane, block, valid):
    """Codes of whole bytes."""
    kind = ir.VectorType(I64, 2 * BYTES // 8)
    raw = _load(builder, plane, block, valid, BLOCK, kind)
    halves = []
    for half in range(2):
        picks = [4 * (i // 2) + 2 * half + i % 2 for i in range(kind.count // 2)]
        order = constant(picks, ir.VectorType(I32, len(picks)))
        halves.append(builder.bitcast(builder.shuffle_vector(raw, raw, order), VB))
    return halves


# ---------------------------------------------------------------- scales and offsets


def super_of(builder, form, block):
    """The number of the superblock that a block is in; None where there are none."""
    return builder.udiv(block, I64(form.super // BLOCK)) if form.super else None


def step_groups(builder, form, rows, block, above, origin, valid=None):
    """(scale, offset) of each of `parts` of the blocks of a step; None for a scale of 1 and an
    offset of 0.

    They are those of ROWS rows, lane r STEP + b of block b of row r. `above` is `super_of` of the
    blocks; offsets are those of code bytes less `origin`.
    """
    pairs = []
    for part in range(parts(form)):

        def read(name, kind, part=part):
            return _of_groups(builder, form, [row[name] for row in rows], kind, block, part, valid)

        def read_super(name):
            raws = [_elements(builder, row[name], above, 1, "f32") for row in rows]
            return _joined(builder, raws, [0] * STEP, "f32")

        scale = offset = None
        if not scales_last(form):
            scale = read("scales", form.scale)
            if form.factor != 1.0:
                scale = builder.fmul(scale, constant(form.factor, VF))
            if form.super:
                scale = builder.fmul(scale, read_super("supers"))
        if form.offsets not in ("", "zeros"):
            offset = read("offsets", form.offsets)
            if form.offsets == "u8":
                offset = builder.fmul(offset, read_super("floors"))
        zeros = read("zeros", "i8") if form.offsets == "zeros" else None
        shift = origin - bias(form) - form.zero
        pairs.append((scale, _shifted(builder, shift, scale, offset, zeros)))
    return pairs


def has_offsets(form, origin) -> bool:
    """Whether `step_groups` gives offsets."""
    return form.offsets != "" or origin != bias(form) + form.zero


def _shifted(builder, shift, scale, offset, zeros):
    """offset + scale (shift - zeros), None if that is 0."""
    if not shift and zeros is None:
        return offset
    more = constant(float(shift), VF)
    if zeros is not None:
        more = builder.fsub(more, zeros)
    if scale is not None:
        more = builder.fmul(more, scale)
    return more if offset is None else builder.fadd(more, offset)


def _of_groups(builder, form, planes, kind, block, part, valid):
    """Elements of planes that have one for each group."""
    span, picks = BLOCK * STEP, [0] * STEP
    if not form.group or form.group % span == 0:
        first = builder.udiv(block, I64(form.group // BLOCK)) if form.group else I64(0)
        raws = [_elements(builder, plane, first, 1, kind) for plane in planes]
    elif valid is None and span % form.group == 0:
        picks = [(BLOCK * i + 16 * part) // form.group for i in range(STEP)]
        first = builder.udiv(builder.mul(block, I64(BLOCK)), I64(form.group))
        count = span // form.group
        raws = [_elements(builder, plane, first, count, kind) for plane in planes]
    else:
        picks = [*range(STEP)]
        raws = [_gathered(builder, form, plane, kind, block, part, valid) for plane in planes]
    return _joined(builder, raws, picks, kind)


def _elements(builder, plane, first, count, kind):
    llvm, size = STORED[kind]
    where = at(builder, plane, builder.mul(first, I64(size)), ir.VectorType(llvm, count))
    return builder.load(where, align=1)


def _joined(builder, raws, picks, kind):
    """Elements `picks` of each of ROWS vectors, as f32."""
    count = raws[0].type.count
    while len(raws) > 1:
        order = constant(
            [*range(2 * raws[0].type.count)], ir.VectorType(I32, 2 * raws[0].type.count)
        )
        pairs = zip(raws[::2], raws[1::2], strict=True)
        raws = [builder.shuffle_vector(a, b, order) for a, b in pairs]
    few = raws[0].type.count < LANES  # and cheaper to spread as floats
    values = decode(builder, raws[0], kind) if few else raws[0]
    lanes = constant([r * count + pick for r in range(ROWS) for pick in picks], VI)
    values = builder.shuffle_vector(values, values, lanes)
    return values if few else decode(builder, values, kind)


def of_row(builder, values, r):
    """What lanes of `step_groups` have of row r, four times for each block."""
    order = [r * STEP + i // 4 for i in range(LANES)]
    return builder.shuffle_vector(values, values, constant(order, VI))


def _gathered(builder, form, plane, kind, block, part, valid):
    """The elements of the groups that the STEP blocks are in, each read by itself."""
    llvm, size = STORED[kind]
    raw = ir.Constant(ir.VectorType(llvm, STEP), ir.Undefined)
    for i in range(STEP):
        offset = I64(i)
        if valid is not None:
            last = builder.sub(valid, I64(1))
            offset = builder.select(builder.icmp_signed("<", offset, last), offset, last)
        first = builder.mul(builder.add(block, offset), I64(BLOCK))
        index = builder.udiv(builder.add(first, I64(16 * part)), I64(form.group))
        where = at(builder, plane, builder.mul(index, I64(size)), llvm)
        raw = builder.insert_element(raw, builder.load(where, align=1), I32(i))
    return raw
