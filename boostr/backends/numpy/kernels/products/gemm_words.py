"""Integer codes times many rows of x in words of two 16-bit numbers: what `gemm_digits.py` computes
where no instruction adds up products of bytes, but `vpmaddwd` products of 16 bits.

    y[m, n] = sum over blocks b of s[m, b] d[n, b] sum(v (u - c)) + offset[n, b] s[m, b] sum(v)

with x = s v, |v| <= 32512, codes u and their centre c as there: v is an operand as it is, and a sum
is below 2**28. Two calls. `pack` writes for each tile of R rows of x and each block of 32 elements
a record
    16 words of each row: elements 4 i and 4 i + 2, then 4 i + 1 and 4 i + 3, as the codes of a word
    of bytes fall apart
    f32 s, s sum(v) of the halves of the block, s sum(v) of all of it, of each row

`product` is that of `int8_gemm.py`: R x COLUMN_VECTORS sums in registers meet a word of each row
and a vector of words of the panel (`digit_panels.py`). When a group of inputs ends they are
converted, scaled and added to floats, which lie in memory. What is added up for a row does not
depend on how many rows a tile has.
"""

from llvmlite import ir
from numba import float32, types

from boostr.backends.numpy.kernels.products.ahead import asker
from boostr.backends.numpy.kernels.products.codes import BLOCK, VECTORS
from boostr.backends.numpy.kernels.products.digit_panels import (
    COLUMN_VECTORS,
    NR,
    WORDS,
    block_bytes,
    extras,
    offsets_of,
    panel_walker,
)
from boostr.backends.numpy.kernels.products.digits import (
    by_halves,
    tile_packer,
)
from boostr.backends.numpy.kernels.products.int8_gemm import stepper
from boostr.backends.numpy.kernels.products.steps import BYTES, VF, VI, parts
from boostr.backends.numpy.kernels.products.weights import scales_last
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, f32, put
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I16,
    LANES,
    bits_i32,
    constant,
    emit_fma,
    fill,
    inline,
    intrinsic,
    signature,
    splat,
    to_f32,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

ROW = 2 * BLOCK  # bytes of a row's words in a record


# ---------------------------------------------------------------- x


@intrinsic
def store_words(typingctx, target, values):
    """Writes the words of a block of whole numbers."""

    def codegen(context, builder, sig, args):
        narrow = ir.VectorType(I16, LANES)
        order = [i // 4 * 4 + (0, 2, 1, 3)[i % 4] for i in range(LANES)]
        for v in range(VECTORS):
            value = builder.trunc(builder.extract_value(args[1], v), narrow)
            words = builder.shuffle_vector(value, value, constant(order, VI))
            builder.store(words, at(builder, args[0], v * LANES * 2, narrow), align=2)
        return context.get_dummy_value()

    return signature(types.none, target, values), codegen


def pack(rows: int):
    """Item t is tile t, of `rows` rows of x."""

    @inline
    def write(record, r, whole, s):
        store_words(record + r * ROW, whole)
        rest, sums, s = f32(record + rows * ROW), reduce_add(to_f32(by_halves(whole))), float32(s)
        rest[r] = s
        rest[rows + r] = s * sums[0]
        rest[2 * rows + r] = s * sums[1]
        rest[3 * rows + r] = s * (sums[0] + sums[1])

    return tile_packer(rows, layout.word_block(rows), write)


# ---------------------------------------------------------------- the product


def scaler(form):
    """An intrinsic op(result, totals, groups, scales, sums): result[r, v] += what the sums of
    codes of a group are worth; `groups` has the panel's scales and offsets."""

    def op(typingctx, result, totals, groups, scales, sums):
        def codegen(context, builder, sig, args):
            extra = [
                [builder.load(at(builder, args[2], (i * COLUMN_VECTORS + v) * BYTES, VF), align=4)
                 for v in range(COLUMN_VECTORS)]
                for i in range(extras(form) // parts(form))
            ]  # fmt: skip

            def of_row(address, r):
                return splat(
                    builder, builder.load(at(builder, address, r * 4, F32), align=4), LANES
                )

            for r in range(len(totals) // COLUMN_VECTORS):
                s = of_row(args[3], r)
                offset = of_row(args[4], r) if offsets_of(form) else None
                for v in range(COLUMN_VECTORS):
                    i = r * COLUMN_VECTORS + v
                    where = at(builder, args[0], i * BYTES, VF)
                    value = builder.sitofp(builder.extract_value(args[1], i), VF)
                    if not scales_last(form):
                        value = builder.fmul(value, extra[0][v])
                    value = emit_fma(builder, value, s, builder.load(where, align=4))
                    if offset is not None:
                        value = emit_fma(builder, extra[-1][v], offset, value)
                    builder.store(value, where, align=4)
            return context.get_dummy_value()

        return signature(types.none, result, totals, groups, scales, sums), codegen

    return intrinsic(op)


def product(form, depth: int, rows: int):
    """See `digit_panels.panel_walker`."""
    step, ask, scale = stepper(ROW), asker(form, NR), scaler(form)
    size, tile, record_bytes = block_bytes(form), rows * COLUMN_VECTORS, layout.word_block(rows)
    groups, words = parts(form), WORDS // parts(form)
    group_bytes, of_sums = extras(form) // groups * NR * 4, 1 if groups == 2 else 3

    @inline
    def of_tile(result, record, panel, here, params, n, block, turn, turns):
        put(result, fill(tile, 0.0))
        for i in range(here):
            ask(params, n, block + i, turn, turns)
            scales, extra = record + rows * ROW, panel + WORDS * NR * 4
            for g in range(groups):
                total = bits_i32(fill(tile, 0.0))
                for w in range(g * words, (g + 1) * words):
                    total = step(record + w * 4, panel + w * NR * 4, total)
                sums = scales + (of_sums + g) * rows * 4
                scale(result, total, extra + g * group_bytes, scales, sums)
            record += record_bytes
            panel += size

    return panel_walker(form, depth, rows, record_bytes, of_tile)
