"""Integer codes times few rows of x in integers (`digits.py`).

With x = s v in each block, for the inputs that share a scale d and an offset m,
w = d (u - b - zero) + m, where u are unsigned bytes (`steps.py`),

    sum of x w = (s d) sum(v (u - c)) + (m + d (c - b - zero)) s sum(v)

for any c: the middle of bytes and of tables, or two large numbers would cancel; 0 for codes of
fewer bits, as a lane's sum of 8 products of theirs is exact in f32 (two digits), and the second sum
costs less than to subtract c in each lane. One int32 lane gets 4 or 8 inputs:
|sum(v (u - c))| <= 2**30, and what overflows on the way there does so modulo 2**32.

The dot products of unsigned codes and signed bytes are what `vpdpbusd` does 4 at a time, so two
digits cost a third of decoding the weights to f32; one or two rows of x, for which memory is what
limits bytes and tables, have three there. Where there is `vpmaddubsw` instead, which adds
two products up in 16 bits, codes of at most 7 bits meet two digits too, and `vpmaddwd` weighs and
adds the sums; of at most 6 bits, the sums of both halves of a block fit in 16 together. Bytes meet
one digit of 16 bits there, every other byte at a time, which costs less than three of base 128, as
would fit; without it (SSE2) all codes do.

Limits: K a multiple of 32; groups of 16 or a multiple of 32; super-scales of a multiple of 32 STEP.
"""

from functools import reduce

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.ahead import rows_ahead, scale_asker
from boostr.backends.numpy.kernels.products.codes import BLOCK, block_bytes, fields
from boostr.backends.numpy.kernels.products.digits import BASE_BITS
from boostr.backends.numpy.kernels.products.linear import writer
from boostr.backends.numpy.kernels.products.steps import (
    BYTES,
    ROWS,
    SIGNED,
    STEP,
    VB,
    VF,
    VI,
    VW,
    byte_words,
    centre,
    has_offsets,
    is_wide,
    of_row,
    step_codes,
    step_groups,
    super_of,
)
from boostr.backends.numpy.kernels.products.weights import (
    plane_names,
    plane_rows,
    scales_last,
    split_rows,
)
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import (
    at,
    f32,
    prefetch,
    put,
    spread,
    stack,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    I32,
    I64,
    LANES,
    call,
    constant,
    emit_fma,
    fill,
    intrinsic,
    signature,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add
from boostr.backends.numpy.runtime import jit

M, K, PACKED = layout.M, layout.K, layout.PACKED
# pairs of products added up as i16, and pairs of these as i32
_PAIRS = {
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    4: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
}  # fmt: skip


def dot(builder, total, codes, digits):
    """total += dot products of 4 codes with 4 digits in each i32 lane."""
    here = jit.target()
    if here.int8_dot == "dpbusd":
        words = [builder.bitcast(value, VI) for value in (codes, digits)]
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{LANES * 32}", VI, [total, *words])
    if SIGNED:
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", VI, [total, codes, digits])
    pairs_of, quads_of = _PAIRS[LANES]
    if here.adds_pairs:
        products = call(builder, pairs_of, VW, [codes, digits])
        return builder.add(total, call(builder, quads_of, VI, [products, constant(1, VW)]))
    wide = ir.VectorType(I32, BYTES)
    products = builder.mul(builder.zext(codes, wide), builder.sext(digits, wide))
    for part in range(4):
        order = ir.Constant(VI, [4 * i + part for i in range(LANES)])
        total = builder.add(total, builder.shuffle_vector(products, products, order))
    return total


class _Record:
    """A step of a row of x, each vector of it loaded where it is first used."""

    def __init__(self, builder, form, digits, address):
        self.builder, self.form, self.digits, self.address = builder, form, digits, address
        self.sums_at, self.centre, self.loaded = 2 * layout.digit_bytes(digits), origin(form), {}

    def part(self, kind, index):
        if index not in self.loaded:
            where = at(self.builder, self.address, index * BYTES, kind)
            self.loaded[index] = self.builder.load(where, align=4)
        return self.loaded[index]

    def scale(self):
        """s, in the lanes of `step_groups`."""
        return self.part(VF, self.sums_at + 2)

    def scaled_sums(self, halves):
        """s sum(v) over the halves, in the lanes of `step_groups`."""
        parts = [self.part(VF, self.sums_at + 3 + half) for half in halves]
        return parts[0] if len(parts) == 1 else self.builder.fadd(*parts)

    def sums(self, halves):
        """sum(v) of each lane, over the halves of the blocks."""
        parts = [self.part(VI, self.sums_at + half) for half in halves]
        return parts[0] if len(parts) == 1 else self.builder.add(*parts)

    def product(self, codes, halves):
        """sum(v (u - c)) of each lane, as f32."""
        builder = self.builder
        if self.digits == 1:
            total = self._in_words(codes, halves)
        elif self.digits == 2 and jit.target().adds_pairs and not jit.target().dots_bytes:
            total = self._in_pairs(codes, halves)
        else:
            total = self._in_digits(codes, halves)
        if self.centre:  # a power of two
            shift = constant(self.centre.bit_length() - 1, VI)
            total = builder.sub(total, builder.shl(self.sums(halves), shift))
        return builder.sitofp(total, VF)

    def _in_digits(self, codes, halves):
        builder, total = self.builder, constant(0, VI)
        for digit in range(self.digits):
            if digit:
                total = builder.shl(total, constant(BASE_BITS[self.digits], VI))
            for half in halves:
                total = dot(builder, total, codes[half], self.part(VB, 2 * digit + half))
        return total

    def _in_words(self, codes, halves):
        """The even and the odd codes of each word of bytes as words."""
        builder, (_, quads_of) = self.builder, _PAIRS[LANES]
        total = constant(0, VI)
        for half in halves:
            for part, some in enumerate(byte_words(builder, codes[half])):
                pair = [some, self.part(VW, 2 * half + part)]
                total = builder.add(total, call(builder, quads_of, VI, pair))
        return total

    def _in_pairs(self, codes, halves):
        """Sums of two products in 16 bits, of both halves where they fit; then weighed."""
        builder, (pairs_of, quads_of) = self.builder, _PAIRS[LANES]
        total, together = constant(0, VI), sum(fields(self.form)) <= 6
        for digit, weight in enumerate((1 << BASE_BITS[2], 1)):
            pairs = [
                call(builder, pairs_of, VW, [codes[half], self.part(VB, 2 * digit + half)])
                for half in halves
            ]
            if together:  # |2 * 2 * 63 * 128| < 2**15
                pairs = [reduce(builder.add, pairs)]
            for some in pairs:
                quads = call(builder, quads_of, VI, [some, constant(weight, VW)])
                total = builder.add(total, quads)
        return total


def origin(form) -> int:
    """c."""
    return centre(form) if is_wide(form) else 0


def multiplier(form, digits: int, steps: int, masked: bool):
    """An intrinsic op(rows, records, block, valid, acc): acc += the products of `steps` steps from
    `block` on, for ROWS rows of w, as `plane_rows` gives them, and M rows of x; `masked`: only
    `valid` of the blocks exist.

    acc[r M + m] are the sums of a row, acc[ROWS M + m] those of offsets in the lanes of all rows.
    """
    size = layout.digit_record(LANES, digits)

    def op(typingctx, rows, records, block, valid, acc):
        columns = len(records)

        def codegen(context, builder, sig, args):
            out = [builder.extract_value(args[4], i) for i in range(len(acc))]
            rows = split_rows(builder, form, args[0])
            records = [builder.extract_value(args[1], c) for c in range(columns)]
            limit, above = args[3] if masked else None, super_of(builder, form, args[2])
            for step in range(steps):
                xs = [
                    _Record(builder, form, digits, builder.add(r, I64(step * size)))
                    for r in records
                ]
                block = builder.add(args[2], I64(step * STEP))
                _multiply(builder, form, rows, xs, (block, above, origin(form), limit), out)
            return context.make_tuple(builder, acc, out)

        return signature(acc, rows, records, types.int64, types.int64, acc), codegen

    return intrinsic(op)


def _multiply(builder, form, rows, xs, place, out):
    """Adds the products of one step to `out`."""
    block, *_, limit = place
    codes = [step_codes(builder, form, row, block, limit) for row in rows]
    groups = step_groups(builder, form, rows, *place)
    shares = [(0, 1)] if len(groups) == 1 else [(0,), (1,)]
    for (scale, offset), halves in zip(groups, shares, strict=True):
        for c, x in enumerate(xs):
            factor = x.scale() if scale is None else builder.fmul(scale, x.scale())
            for r in range(ROWS):
                i, row_factor = r * len(xs) + c, of_row(builder, factor, r if scale else 0)
                out[i] = emit_fma(builder, x.product(codes[r], halves), row_factor, out[i])
            if offset is not None:
                i = ROWS * len(xs) + c
                out[i] = emit_fma(builder, offset, x.scaled_sums(halves), out[i])


@intrinsic
def settle(typingctx, columns, acc):
    """The ROWS * `columns` (a constant) sums of `multiplier`, those of offsets among them."""
    if not isinstance(columns, types.IntegerLiteral):
        return None
    many = columns.literal_value
    result = types.UniTuple(acc.dtype, ROWS * many)

    def codegen(context, builder, sig, args):
        out = [builder.extract_value(args[1], i) for i in range(len(acc))]
        for i, offsets in enumerate(out[ROWS * many :] * ROWS):
            r, kind = i // many, ir.VectorType(ir.IntType(1), LANES)
            mine = constant([int(lane // STEP == r) for lane in range(LANES)], kind)
            part = builder.select(mine, offsets, constant(0.0, VF))
            out[i] = builder.fadd(out[i], part)
        return context.make_tuple(builder, result, out[: ROWS * many])

    return signature(result, columns, acc), codegen


def gemv(form, columns: int, digits: int):
    """Item n is row n of w; `columns` >= M rows of x, split; ROWS rows of w at a time."""
    turn = max(form.super // (BLOCK * STEP), 1)  # steps that share super-scales
    whole, partial = multiplier(form, digits, turn, False), multiplier(form, digits, 1, True)
    rows_of, tile, size = plane_rows(form, ROWS), ROWS * columns, layout.digit_record(LANES, digits)
    sums = tile + columns * has_offsets(form, origin(form))
    names, ask_scales = plane_names(form), scale_asker(form, ROWS)
    write = writer(columns, 1, scales_last(form))
    span = turn * STEP * block_bytes(form) * ROWS
    high = names.index("high") if "high" in names else 0
    high_span = turn * STEP * 4 * fields(form)[1] * ROWS if high else 0

    def kernel(params, start, stop):
        blocks, count = params[K] // BLOCK, params[M]
        steps = (blocks + STEP - 1) // STEP
        results = f32(stack(tile))
        ahead = rows_ahead(params, ROWS)
        far, high_far = ahead * params[layout.CODES + 1], ahead * params[layout.HIGH + 1]
        for n in range(start, stop, ROWS):
            ws = rows_of(params, n, stop - 1)
            acc = fill(sums, 0.0)
            ask_scales(params, n + ahead)
            for i in range(0, blocks, turn * STEP):
                prefetch(ws[0] + far + i // (turn * STEP) * span, span, 2)
                if high:
                    prefetch(ws[high] + high_far + i // (turn * STEP) * high_span, high_span, 2)
                records = params[PACKED] + i // STEP * size
                if i + turn * STEP <= blocks:
                    xs = spread(columns, records, steps * size, 0, count - 1)
                    acc = whole(ws, xs, i, 0, acc)
                else:
                    for block in range(i, blocks, STEP):
                        xs = spread(columns, records, steps * size, 0, count - 1)
                        acc = partial(ws, xs, block, blocks - block, acc)
                        records += size
            put(results, reduce_add(settle(columns, acc)))
            write(params, results, n, min(ROWS, stop - n))

    return kernel
