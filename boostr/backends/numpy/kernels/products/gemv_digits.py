"""Codes of 4 and 6 bits times few rows of x in integers, as exact as f32.

Each block of 32 elements of x becomes fixed point: x = s v with s = max|x| / 8323072 and whole
numbers |v| < 2**23, cut into three signed bytes, v = 65536 d2 + 256 d1 + d0. The error, at most s /
2 or 2**-24 of the block's largest element, is that of rounding to f32. Then for the inputs that
share a scale d and an offset m, w = d (q - zero) + m, and c the middle of the codes (8 or 32):

    sum of x w = (s d) sum(v (q - c)) + (m + d (c - zero)) s sum(v)

Without the - c two large numbers would cancel where zero = 0. The dot products of unsigned codes
and signed bytes are what `vpdpbusd` (or `vpmaddubsw`) does 4 at a time, so this costs half of
decoding the weights to f32. One int32 lane gets 4 inputs (6 bits, or groups of 16) or 8 (4 bits):
|sum(v (q - c))| < 2**31, and what overflows on the way there does so modulo 2**32.

A step is STEP blocks, one for each four int32 lanes; the planes of codes lie so that its bytes are
in the order of the lanes. `split` writes for each step of a row of x
    6 vectors of 4 LANES bytes: for d2, d1, d0 the elements 0..15 of each block, then the 16..31
    2 vectors of LANES i32: sum(v) over the 4 elements of each lane, for the two halves
    LANES f32: s, four times for each block
The last step ends where the row does: what the one before it has of the same blocks is zero in it.

Limits: K >= 32 STEP; groups of 16 or a multiple of 32; super-scales of a multiple of 32 STEP.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, STORED, VECTORS
from boostr.backends.numpy.kernels.products.linear import AHEAD, finish
from boostr.backends.numpy.kernels.products.weights import (
    load_block,
    number,
    plane_names,
    plane_rows,
    split_rows,
)
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import (
    at,
    decode,
    f32,
    prefetch,
    put,
    spread,
    stack,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    absolute,
    call,
    constant,
    fill,
    intrinsic,
    maximum,
    mul,
    rint,
    signature,
    to_i32,
    vector,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add, reduce_max
from boostr.backends.numpy.runtime import jit

X, LDX, M, K, PACKED = layout.X, layout.LDX, layout.M, layout.K, layout.PACKED
STEP = LANES // 4
BYTES = 4 * LANES  # of a vector
RECORD = layout.digit_record(LANES)
SUMS, SCALE = 6 * BYTES, 8 * BYTES  # where they are in a record
LARGEST = 8323072.0  # 127 * 65536: leaves room for rounding below 127 * (65536 + 256 + 1)
_VF, _VI, _VB = (ir.VectorType(e, n) for e, n in ((F32, LANES), (I32, LANES), (I8, BYTES)))
_WORDS = ir.VectorType(I64, BYTES // 8)


# ---------------------------------------------------------------- x


@intrinsic
def store_digits(typingctx, record, block, values):
    """Writes digits and sums of the 32 whole numbers `values` (VECTORS i32 vectors) of a block."""

    def codegen(context, builder, sig, args):
        base = builder.add(args[0], builder.mul(args[1], I64(16)))
        narrow, half, eight = ir.VectorType(I8, LANES), constant(128, _VI), constant(8, _VI)
        for v in range(VECTORS):
            value = builder.extract_value(args[2], v)
            side, within = divmod(v * LANES, 16)
            _store_sums(builder, base, SUMS + side * BYTES + within, value)
            for digit in range(3):  # d0 first, which lies last
                offset = (2 * (2 - digit) + side) * BYTES + within
                where = at(builder, base, offset, narrow)
                builder.store(builder.trunc(value, narrow), where, align=1)
                value = builder.ashr(builder.add(value, half), eight)
        return context.get_dummy_value()

    return signature(types.none, record, block, values), codegen


def _store_sums(builder, base, offset, value):
    """The sum of each 4 neighbouring lanes of an i32 vector, as LANES / 4 i32."""
    quarters = []
    for part in range(4):
        order = ir.Constant(ir.VectorType(I32, LANES // 4), list(range(part, LANES, 4)))
        quarters.append(builder.shuffle_vector(value, value, order))
    total = builder.add(builder.add(*quarters[:2]), builder.add(*quarters[2:]))
    builder.store(total, at(builder, base, offset, total.type), align=4)


def split():
    """Item i is block i % B of the steps of row i // B of x, B = STEP blocks for each step."""

    def kernel(params, start, stop):
        blocks = params[K] // BLOCK
        steps = (blocks + STEP - 1) // STEP
        for item in range(start, stop):
            m, place = item // (steps * STEP), item % (steps * STEP)
            step, i = place // STEP, place % STEP
            b = min(step * STEP, blocks - STEP) + i
            record = params[PACKED] + (m * steps + step) * RECORD
            values = fill(VECTORS, 0.0)
            if b >= step * STEP:
                values = load_block(spread(1, params[X], params[LDX] * 4, m, m), b)
            largest = vector(0.0)
            for v in range(VECTORS):
                largest = maximum(absolute(values[v]), largest)
            top = reduce_max(largest)
            inverse = LARGEST / top if top > 0.0 else 0.0
            store_digits(record, i, to_i32(rint(mul(values, inverse))))
            s = f32(record + SCALE + i * 16)
            for lane in range(4):
                s[lane] = top / LARGEST

    return kernel


# ---------------------------------------------------------------- codes and scales of a step


def _step_codes(builder, form, row, block):
    """(inputs 0..15 of STEP blocks, inputs 16..31), as unsigned bytes."""
    offset = builder.mul(block, I64(16))
    raw = builder.load(at(builder, row["codes"], offset, _VB), align=1)
    low = builder.and_(raw, constant(15, _VB))
    high = builder.lshr(raw, constant(4, _VB))
    if form.codes == "c4":
        return low, high
    pairs = _step_pairs(builder, row["high"], block)
    return tuple(builder.or_(*both) for both in zip((low, high), pairs, strict=True))


def _step_pairs(builder, address, block):
    """The bits 4 and 5 of codes of 6 bits, for both halves: bytes 0..7 of a half are in bits 0, 1
    (4, 5 in the other) of a block's 8 bytes, 8..15 in the next two."""
    half = ir.VectorType(I8, BYTES // 2)
    raw = builder.load(at(builder, address, builder.mul(block, I64(8)), half), align=1)
    order = [i // 16 * 8 + i % 8 for i in range(BYTES)]
    twice = builder.shuffle_vector(raw, raw, ir.Constant(ir.VectorType(I32, BYTES), order))
    words = builder.bitcast(twice, _WORDS)
    up, down = (constant(s * (BYTES // 16), _WORDS) for s in ([4, 2], [0, 2]))
    return [
        builder.and_(builder.bitcast(shifted, _VB), constant(0x30, _VB))
        for shifted in (builder.shl(words, up), builder.lshr(words, down))
    ]


def _spread(builder, address, kind, indices, picks):
    """Elements of a plane as LANES f32, element `picks[i]` of those read in lanes 4 i .. 4 i + 3.

    `indices` is (the first element's index, how many to read), or the index of each.
    """
    llvm, size = STORED[kind]
    if isinstance(indices, tuple):
        first, count = indices
        vector = ir.VectorType(llvm, count)
        where = at(builder, address, builder.mul(first, I64(size)), vector)
        raw = builder.load(where, align=1)
    else:
        raw = ir.Constant(ir.VectorType(llvm, len(indices)), ir.Undefined)
        for i, index in enumerate(indices):
            where = at(builder, address, builder.mul(index, I64(size)), llvm)
            raw = builder.insert_element(raw, builder.load(where, align=1), I32(i))
    values = decode(builder, raw, kind)
    order = ir.Constant(_VI, [picks[i // 4] for i in range(LANES)])
    return builder.shuffle_vector(values, values, order)


def _step_groups(builder, form, row, block):
    """(scale, offset or None) of each half of the blocks of a step; one pair if halves share it."""
    blocks = range(STEP)
    if form.group == 16:
        indices = builder.mul(block, I64(2)), 2 * STEP
        picks = [[2 * i for i in blocks], [2 * i + 1 for i in blocks]]
    elif form.group == BLOCK:
        indices, picks = (block, STEP), [list(blocks)]
    else:
        size = I64(form.group // BLOCK)
        indices = [builder.udiv(builder.add(block, I64(i)), size) for i in blocks]
        picks = [list(blocks)]
    pairs = []
    for pick in picks:
        scale = _spread(builder, row["scales"], form.scale, indices, pick)
        if form.super:
            above = builder.udiv(block, I64(form.super // BLOCK))
            scale = builder.fmul(scale, number(builder, row["supers"], above, "f32"))
        offset = None
        if form.offsets:
            offset = _spread(builder, row["offsets"], "f16", indices, pick)
        pairs.append((scale, _recentred(builder, form, scale, offset)))
    return pairs


def _centre(form):
    return {"c4": 8, "c6": 32}[form.codes]


def _recentred(builder, form, scale, offset):
    """offset + scale (c - zero), None if that is 0."""
    shift = _centre(form) - form.zero
    if not shift:
        return offset
    more = builder.fmul(scale, constant(float(shift), _VF))
    return more if offset is None else builder.fadd(more, offset)


# ---------------------------------------------------------------- the product


def _dot(builder, total, codes, digits):
    """total += dot products of 4 codes (u8 < 64) with 4 signed bytes in each i32 lane."""
    here = jit.target()
    if here.vnni and LANES == 16:
        words = [builder.bitcast(value, _VI) for value in (codes, digits)]
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", _VI, [total, *words])
    if here.has("avx2") and LANES == 8:
        pairs = ir.VectorType(I16, 2 * LANES)
        products = call(builder, "llvm.x86.avx2.pmadd.ub.sw", pairs, [codes, digits])
        ones = ir.Constant(pairs, [1] * pairs.count)
        quads = call(builder, "llvm.x86.avx2.pmadd.wd", _VI, [products, ones])
        return builder.add(total, quads)
    if here.has("dotprod") and LANES == 4:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return call(builder, name, _VI, [total, codes, digits])
    wide = ir.VectorType(I32, BYTES)
    products = builder.mul(builder.zext(codes, wide), builder.sext(digits, wide))
    for part in range(4):
        order = ir.Constant(_VI, [4 * i + part for i in range(LANES)])
        total = builder.add(total, builder.shuffle_vector(products, products, order))
    return total


class _Record:
    """A step of a row of x, each vector of it loaded where it is first used."""

    def __init__(self, builder, form, address):
        self.builder, self.address, self.loaded = builder, address, {}
        self.bits = constant(_centre(form).bit_length() - 1, _VI)

    def part(self, kind, offset):
        if offset not in self.loaded:
            where = at(self.builder, self.address, offset, kind)
            self.loaded[offset] = self.builder.load(where, align=4)
        return self.loaded[offset]

    def sums(self, halves):
        """sum(v) of each lane, over the halves of the blocks."""
        parts = [self.part(_VI, SUMS + half * BYTES) for half in halves]
        return parts[0] if len(parts) == 1 else self.builder.add(*parts)

    def product(self, codes, halves):
        """sum(v (q - c)) of each lane, as f32."""
        builder, total = self.builder, constant(0, _VI)
        for digit in range(3):
            if digit:
                total = builder.shl(total, constant(8, _VI))
            for half in halves:
                digits = self.part(_VB, (2 * digit + half) * BYTES)
                total = _dot(builder, total, codes[half], digits)
        total = builder.sub(total, builder.shl(self.sums(halves), self.bits))
        return builder.sitofp(total, _VF)


def _fma(builder, a, b, c):
    return call(builder, f"llvm.fma.v{LANES}f32", _VF, [a, b, c])


def multiplier(form):
    """An intrinsic op(rows, records, block, acc): acc[r, m] += the products of STEP blocks from
    `block` on, for R rows of w, as `plane_rows` gives them, and M rows of x."""

    def op(typingctx, rows, records, block, acc):
        columns = len(records)

        def codegen(context, builder, sig, args):
            out = [builder.extract_value(args[3], i) for i in range(len(acc))]
            xs = [_Record(builder, form, builder.extract_value(args[1], c)) for c in range(columns)]
            for r, row in enumerate(split_rows(builder, form, args[0])):
                codes = _step_codes(builder, form, row, args[2])
                groups = _step_groups(builder, form, row, args[2])
                shares = [(0, 1)] if len(groups) == 1 else [(0,), (1,)]
                for c, x in enumerate(xs):
                    i, s = r * columns + c, x.part(_VF, SCALE)
                    for (scale, offset), halves in zip(groups, shares, strict=True):
                        total = x.product(codes, halves)
                        out[i] = _fma(builder, total, builder.fmul(scale, s), out[i])
                        if offset is not None:
                            sums = builder.fmul(builder.sitofp(x.sums(halves), _VF), s)
                            out[i] = _fma(builder, offset, sums, out[i])
            return context.make_tuple(builder, acc, out)

        return signature(acc, rows, records, types.int64, acc), codegen

    return intrinsic(op)


def gemv(form, columns: int, rows: int = 4):
    """Item n is row n of w; `columns` >= M rows of x, split; `rows` rows of w at a time."""
    tile, ahead, half = rows * columns, BYTES * rows, BYTES * rows // 2
    rows_of, multiply, pairs = plane_rows(form, rows), multiplier(form), form.codes == "c6"
    high = plane_names(form).index("high") if pairs else 0

    def kernel(params, start, stop):
        blocks, count = params[K] // BLOCK, params[M]
        steps = (blocks + STEP - 1) // STEP
        results = f32(stack(tile))
        for n in range(start, stop, rows):
            ws = rows_of(params, n, stop - 1)
            acc = fill(tile, 0.0)
            for step in range(steps):
                xs = spread(columns, params[PACKED] + step * RECORD, steps * RECORD, 0, count - 1)
                prefetch(ws[0] + AHEAD + step * ahead, ahead, 3)
                if pairs:
                    prefetch(ws[high] + AHEAD // 2 + step * half, half, 3)
                acc = multiply(ws, xs, min(step * STEP, blocks - STEP), acc)
            put(results, reduce_add(acc))
            for r in range(min(rows, stop - n)):
                for m in range(count):
                    finish(params, results[r * columns + m], m, n + r)

    return kernel
