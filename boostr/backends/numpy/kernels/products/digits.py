"""x in integers: blocks of 32 elements in fixed point, cut into signed bytes, "digits".

x = s v with s = max|x| / L and whole numbers v,
    v = 256 d1 + d0 of two digits, L = 32512
    v = 2**14 d2 + 2**7 d1 + d0 of three, L near 2**20
    v itself, one digit of 16 bits, L = 32512
The error is at most s / 2: 2**-16 or 2**-21 of the block's largest element.

`split` writes for each step (`steps.py`) of a row of x, blocks past its end as zeros,
    2 D vectors of 4 LANES bytes: for the digits, the highest first, the elements 0..15 of each
    block, then the 16..31; one digit: of the elements 0..15 the even ones, then the odd ones, as
    the codes of a word of bytes fall apart, then the same of the others
    2 vectors of LANES i32: sum(v) over the 4 elements of each lane, for the two halves
    3 vectors of LANES f32: s, then s sum(v) of the two halves of each block, once for each of ROWS
    rows of w, as scales and offsets lie that they meet
"""

from functools import reduce

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, VECTORS
from boostr.backends.numpy.kernels.products.steps import BYTES, ROWS, STEP, VI
from boostr.backends.numpy.kernels.products.weights import load_block
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, f32, float_param, spread
from boostr.backends.numpy.kernels.runtime.simd import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    absolute,
    bits_i32,
    constant,
    fill,
    inline,
    intrinsic,
    maximum,
    mul,
    rint,
    signature,
    to_i32,
    vector,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add, reduce_max

X, LDX, M, K, PACKED = layout.X, layout.LDX, layout.M, layout.K, layout.PACKED
BASE_BITS = {2: 8, 3: 7}  # of so many digits
# 127 * 2**8, 63 * 2**14: there is room for rounding
LARGEST = {1: 32512.0, 2: 32512.0, 3: 1032192.0}


@inline
def fixed_point(values, largest):
    """(whole numbers v, s) of a block's `values` = s v, |v| <= largest; s is nan if one of them is,
    and infinite if one is: as bits, nan is above infinity."""
    tops = vector(0)
    for v in range(VECTORS):
        tops = maximum(bits_i32(absolute(values[v])), tops)
    top = float_param(reduce_max(tops))
    inverse = largest / top if top > 0.0 else 0.0
    return to_i32(rint(mul(values, inverse))), top / largest


@intrinsic
def by_halves(typingctx, values):
    """The vectors of each half of a block added up: two of them."""
    result = types.UniTuple(values.dtype, 2)

    def codegen(context, builder, sig, args):
        parts = [builder.extract_value(args[0], v) for v in range(VECTORS)]
        pairs = parts[: VECTORS // 2], parts[VECTORS // 2 :]
        return context.make_tuple(builder, result, [reduce(builder.add, pair) for pair in pairs])

    return signature(result, values), codegen


def cut(builder, value, digits: int) -> list:
    """The digits of a vector of whole numbers, the highest first."""
    half, shift = (constant(n, VI) for n in (1 << BASE_BITS[digits] - 1, BASE_BITS[digits]))
    found = []
    for _ in range(digits):
        above = builder.ashr(builder.add(value, half), shift)
        found.insert(0, builder.sub(value, builder.shl(above, shift)))
        value = above
    return found


def digit_storer(digits: int):
    """An intrinsic op(record, block, values): writes digits and sums of the 32 whole numbers
    `values` (VECTORS i32 vectors) of a block."""

    def op(typingctx, record, block, values):
        def codegen(context, builder, sig, args):
            base = builder.add(args[0], builder.mul(args[1], I64(16)))
            sums, narrow = 2 * layout.digit_bytes(digits), ir.VectorType(I8, LANES)
            for v in range(VECTORS):
                value = builder.extract_value(args[2], v)
                side, within = divmod(v * LANES, 16)
                _store_sums(builder, base, (sums + side) * BYTES + within, value)
                if digits == 1:
                    _store_words(builder, base, 2 * side * BYTES + within, value)
                    continue
                for place, digit in enumerate(cut(builder, value, digits)):
                    where = at(builder, base, (2 * place + side) * BYTES + within, narrow)
                    builder.store(builder.trunc(digit, narrow), where, align=1)
            return context.get_dummy_value()

        return signature(types.none, record, block, values), codegen

    return intrinsic(op)


def _store_sums(builder, base, offset, value):
    """The sum of each 4 neighbouring lanes of an i32 vector, as LANES / 4 i32."""
    quarters = []
    for part in range(4):
        order = ir.Constant(ir.VectorType(I32, LANES // 4), list(range(part, LANES, 4)))
        quarters.append(builder.shuffle_vector(value, value, order))
    total = builder.add(builder.add(*quarters[:2]), builder.add(*quarters[2:]))
    builder.store(total, at(builder, base, offset, total.type), align=4)


def _store_words(builder, base, offset, value):
    """The even lanes of an i32 vector as LANES / 2 i16, and the odd ones a vector further on."""
    narrow = ir.VectorType(I16, LANES // 2)
    for part in range(2):
        order = ir.Constant(ir.VectorType(I32, LANES // 2), list(range(part, LANES, 2)))
        words = builder.trunc(builder.shuffle_vector(value, value, order), narrow)
        builder.store(words, at(builder, base, offset + part * BYTES, narrow), align=4)


def split(digits: int):
    """Item i is block i % B of the steps of row i // B of x, B = STEP blocks for each step."""
    store, largest = digit_storer(digits), LARGEST[digits]
    size = layout.digit_record(LANES, digits)
    scales = (2 * layout.digit_bytes(digits) + 2) * BYTES

    def kernel(params, start, stop):
        blocks = params[K] // BLOCK
        steps = (blocks + STEP - 1) // STEP
        for item in range(start, stop):
            m, b = item // (steps * STEP), item % (steps * STEP)
            record = params[PACKED] + (m * steps + b // STEP) * size
            values = fill(VECTORS, 0.0)
            if b < blocks:
                values = load_block(spread(1, params[X], params[LDX] * 4, m, m), b)
            whole, s = fixed_point(values, largest)
            store(record, b % STEP, whole)
            lanes, sums = f32(record + scales) + b % STEP, reduce_add(by_halves(whole))
            for r in range(ROWS):
                lanes[r * STEP] = s
                for half in range(2):
                    lanes[(half + 1) * LANES + r * STEP] = s * sums[half]

    return kernel


def tile_packer(rows: int, size: int, write):
    """A kernel whose item t is tile t of `rows` rows of x, those past M like the last one: a record
    of `size` bytes for each block. write(record, r, v, s) writes what it has of row r."""
    largest = LARGEST[2]

    def kernel(params, start, stop):
        blocks, last = params[K] // BLOCK, params[M] - 1
        for tile in range(start, stop):
            for b in range(blocks):
                record = params[PACKED] + (tile * blocks + b) * size
                for r in range(rows):
                    m = min(tile * rows + r, last)
                    values = load_block(spread(1, params[X], params[LDX] * 4, m, m), b)
                    whole, s = fixed_point(values, largest)
                    write(record, r, whole, s)

    return kernel
