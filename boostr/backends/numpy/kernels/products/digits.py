"""Q4_1 rows times few rows of x in integers, as exact as f32.

Each block of 32 elements of x becomes fixed point: x = s v with s = max|x| / 8323072 and whole
numbers |v| < 2**23, cut into three signed bytes, v = 65536 d2 + 256 d1 + d0. The error, at most s /
2 or 2**-24 of the block's largest element, is that of rounding to f32. Then with weights d q + m

    sum over the block of x w = (s d) sum(v (q - 8)) + (m + 8 d) sum(x)

where sum(v (q - 8)) is exact in int32: |sum over 8 products| <= 8 * 15 * 8323072, and - 8 sum(v),
spread over four lanes, keeps it below 2**31. Without the - 8, of which m + 8 d is the counterpart,
two large numbers would cancel. The dot products of unsigned nibbles and signed bytes are what
`vpdpbusd` (or `vpmaddubsw`) does 4 at a time, so this costs half of decoding the weights to f32.

A step is STEP blocks, one for each four int32 lanes. `split` writes for each step of a row of x
    6 vectors of 4 LANES bytes: for d2, d1, d0 the elements 0..15 of each block, then the 16..31
    LANES i32: 2 sum(v); LANES f32: s; LANES f32: s sum(v) / 4; each four times for each block
Steps are filled up with zero blocks.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.linear import AHEAD, finish
from boostr.backends.numpy.kernels.products.weights import BLOCK, VECTORS, load_block
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import (
    decode,
    f32,
    i32,
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

X, LDX, W, ROW_BYTES, M, K, PACKED = (
    layout.X, layout.LDX, layout.W, layout.ROW_BYTES, layout.M, layout.K, layout.PACKED,
)  # fmt: skip
STEP = LANES // 4
BYTES = 4 * LANES  # of a vector
RECORD = layout.digit_record(LANES)
LARGEST = 8323072.0  # 127 * 65536: leaves room for rounding below 127 * (65536 + 256 + 1)
_VF, _VI, _VB = (ir.VectorType(e, n) for e, n in ((F32, LANES), (I32, LANES), (I8, BYTES)))


def _pointer(builder, address, offset, kind):
    return builder.inttoptr(builder.add(address, I64(offset)), ir.PointerType(kind))


@intrinsic
def store_digits(typingctx, record, block, values):
    """Writes the three digits of the 32 whole numbers `values` (VECTORS i32 vectors) of a block."""

    def codegen(context, builder, sig, args):
        base = builder.add(args[0], builder.mul(args[1], I64(16)))
        narrow = ir.VectorType(I8, LANES)
        half = ir.Constant(_VI, [128] * LANES)
        eight = ir.Constant(_VI, [8] * LANES)
        for v in range(VECTORS):
            number = builder.extract_value(args[2], v)
            side, within = divmod(v * LANES, 16)
            for digit in (2, 1, 0):  # slots: d2 first
                slot = 2 - digit
                value = number
                for _ in range(digit):
                    value = builder.ashr(builder.add(value, half), eight)
                offset = (2 * slot + side) * BYTES + within
                where = _pointer(builder, base, offset, narrow)
                builder.store(builder.trunc(value, narrow), where, align=1)
        return context.get_dummy_value()

    return signature(types.none, record, block, values), codegen


def split():
    """Item i is block i % B of row i // B of x, B = blocks of a row filled up to whole steps."""

    def kernel(params, start, stop):
        blocks = params[K] // BLOCK
        padded = (blocks + STEP - 1) // STEP * STEP
        for item in range(start, stop):
            m, b = item // padded, item % padded
            record = params[PACKED] + (m * padded + b) // STEP * RECORD
            first = record + 6 * BYTES + b % STEP * 16
            sums, s, total = i32(first), f32(first + LANES * 4), f32(first + LANES * 8)
            values = fill(VECTORS, 0.0)
            if b < blocks:
                row = spread(1, params[X], params[LDX] * 4, m, m)
                values = load_block(row, b)
            largest = vector(0.0)
            for v in range(VECTORS):
                largest = maximum(absolute(values[v]), largest)
            top = reduce_max(largest)
            inverse = LARGEST / top if top > 0.0 else 0.0
            numbers = to_i32(rint(mul(values, inverse)))
            store_digits(record, b % STEP, numbers)
            count = 0
            for v in range(VECTORS):
                count += reduce_add(numbers[v])
            scale = top / LARGEST
            for i in range(4):
                sums[i] = 2 * count
                s[i] = scale
                total[i] = scale * count * 0.25

    return kernel


def _dot(builder, total, nibbles, digits):
    """total += dot products of 4 nibbles (u8) with 4 signed bytes in each i32 lane."""
    here = jit.target()
    if here.vnni and LANES == 16:
        words = [builder.bitcast(value, _VI) for value in (nibbles, digits)]
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", _VI, [total, *words])
    if here.has("avx2") and LANES == 8:
        pairs = ir.VectorType(I16, 2 * LANES)
        products = call(builder, "llvm.x86.avx2.pmadd.ub.sw", pairs, [nibbles, digits])
        ones = ir.Constant(pairs, [1] * pairs.count)
        quads = call(builder, "llvm.x86.avx2.pmadd.wd", _VI, [products, ones])
        return builder.add(total, quads)
    if here.has("dotprod") and LANES == 4:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return call(builder, name, _VI, [total, nibbles, digits])
    wide = ir.VectorType(I32, BYTES)
    products = builder.mul(builder.zext(nibbles, wide), builder.sext(digits, wide))
    for part in range(4):
        order = ir.Constant(_VI, [4 * i + part for i in range(LANES)])
        total = builder.add(total, builder.shuffle_vector(products, products, order))
    return total


def _join(builder, parts):
    """Concatenates vectors of one length, two by two."""
    while len(parts) > 1:
        size = parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, 2 * size), list(range(2 * size)))
        parts = [
            builder.shuffle_vector(a, b, order)
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _row_step(builder, addresses):
    """(low nibbles, high nibbles, d, m + 8 d) of STEP blocks, d and m + 8 d four times each."""
    raw = [builder.load(_pointer(builder, a, 4, ir.VectorType(I8, 16)), align=1) for a in addresses]
    packed = _join(builder, raw)
    low = builder.and_(packed, ir.Constant(_VB, [15] * BYTES))
    high = builder.lshr(packed, ir.Constant(_VB, [4] * BYTES))
    pairs = [builder.load(_pointer(builder, a, 0, I32), align=1) for a in addresses]
    word = ir.Constant(ir.VectorType(I32, STEP), ir.Undefined)
    for i, pair in enumerate(pairs):
        word = builder.insert_element(word, pair, I32(i))
    halves = builder.bitcast(word, ir.VectorType(I16, 2 * STEP))
    floats = decode(builder, halves, "f16")
    out = []
    for which in (0, 1):
        order = ir.Constant(_VI, [2 * (i // 4) + which for i in range(LANES)])
        out.append(builder.shuffle_vector(floats, floats, order))
    d, m = out
    return low, high, d, _fma(builder, d, ir.Constant(_VF, [8.0] * LANES), m)


def _fma(builder, a, b, c):
    return call(builder, f"llvm.fma.v{LANES}f32", _VF, [a, b, c])


@intrinsic
def q4_1_step(typingctx, rows, records, block, last, acc):
    """acc[r, m] += the products of STEP blocks from `block` on, for R rows of w and M rows of x.

    Blocks after `last` are read as `last`; their x is zero.
    """
    columns = len(records)

    def codegen(context, builder, sig, args):
        out = [builder.extract_value(args[4], i) for i in range(len(acc))]
        offsets = []
        for i in range(STEP):
            index = builder.add(args[2], I64(i))
            index = builder.select(builder.icmp_signed("<", index, args[3]), index, args[3])
            offsets.append(builder.mul(index, I64(20)))
        for r in range(len(rows)):
            row = builder.extract_value(args[0], r)
            low, high, d, m = _row_step(builder, [builder.add(row, offset) for offset in offsets])
            for c in range(columns):
                record = builder.extract_value(args[1], c)

                def part(kind, offset, record=record):
                    return builder.load(_pointer(builder, record, offset, kind), align=4)

                total = ir.Constant(_VI, [0] * LANES)
                for digit in range(3):
                    if digit:
                        total = builder.shl(total, ir.Constant(_VI, [8] * LANES))
                    total = _dot(builder, total, low, part(_VB, 2 * digit * BYTES))
                    total = _dot(builder, total, high, part(_VB, (2 * digit + 1) * BYTES))
                total = builder.sub(total, part(_VI, 6 * BYTES))
                scale = builder.fmul(d, part(_VF, 7 * BYTES))
                i = r * columns + c
                out[i] = _fma(builder, builder.sitofp(total, _VF), scale, out[i])
                out[i] = _fma(builder, m, part(_VF, 8 * BYTES), out[i])
        return context.make_tuple(builder, acc, out)

    return signature(acc, rows, records, types.int64, types.int64, acc), codegen


def gemv(columns: int, rows: int = 4):
    """Item n is row n of w; `columns` >= M rows of x, split; `rows` rows of w at a time."""
    tile, bytes_per_step = rows * columns, STEP * 20 * rows

    def kernel(params, start, stop):
        blocks, count = params[K] // BLOCK, params[M]
        steps = (blocks + STEP - 1) // STEP
        results = f32(stack(tile))
        for n in range(start, stop, rows):
            ws = spread(rows, params[W], params[ROW_BYTES], n, stop - 1)
            acc = fill(tile, 0.0)
            for step in range(steps):
                xs = spread(columns, params[PACKED] + step * RECORD, steps * RECORD, 0, count - 1)
                prefetch(ws[0] + AHEAD + step * bytes_per_step, bytes_per_step, 3)
                acc = q4_1_step(ws, xs, step * STEP, blocks - 1, acc)
            put(results, reduce_add(acc))
            for r in range(min(rows, stop - n)):
                for m in range(count):
                    finish(params, results[r * columns + m], m, n + r)

    return kernel
