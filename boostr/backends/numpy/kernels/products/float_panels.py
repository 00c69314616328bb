"""Panels of floats for `gemm.py`: NR rows of w decoded to f32 and transposed, [inputs, NR]."""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, block_bytes, has_tail
from boostr.backends.numpy.kernels.products.tiles import (
    COLUMN_VECTORS,
    NR,
    transpose,
    transpose_block,
)
from boostr.backends.numpy.kernels.products.weights import decoder, plane_rows
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, count_mask, decode, emit_read, f32, put
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    constant,
    inline,
    intrinsic,
    signature,
)

N = layout.N
SOME = 4  # blocks of a row that are decoded before its neighbour's, and then transposed
_VF, _VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_WORDS = {"f32": 1, "f16": 2, "bf16": 2}  # elements of a word of 32 bits


def some_floats(form) -> int:
    """Floats of scratch that `panel_filler` wants."""
    return 1 if form.codes in _WORDS else LANES * SOME * BLOCK


def panel_filler(form):
    """fill_panel(params, panel, some, n, k, here): `here` inputs from k on of NR rows from n on,
    as [here rounded up to 32, NR]; `some` is scratch."""
    if form.codes in _WORDS:
        read, rows_of = _word_reader(form), plane_rows(form, LANES)
    else:
        read, rows_of = _block_reader(form), plane_rows(form, 1)

    @inline
    def fill_panel(params, panel, some, n, k, here):
        for v in range(COLUMN_VECTORS):
            read(rows_of, params, panel + v * LANES * 4, some, n + v * LANES, k, here)

    return fill_panel


# ---------------------------------------------------------------- floats of 16 and 32 bits


def _elements(builder, words, codes):
    """The f32 vectors of the elements in a vector of words, the first of each word first."""
    if codes == "f32":
        return [builder.bitcast(words, _VF)]
    narrow = ir.VectorType(I16, LANES)
    halves = (words, builder.lshr(words, constant(16, _VI)))
    return [decode(builder, builder.trunc(half, narrow), codes) for half in halves]


def _block_transposer(form, masked: bool):
    """An intrinsic op(panel, rows, block, count): block `block` of LANES rows of w, transposed;
    `masked`: only `count` elements of it exist."""
    each, size = _WORDS[form.codes], block_bytes(form)
    kind = ir.VectorType(I16 if each == 2 else I32, LANES * each)

    def op(typingctx, panel, rows, block, count):
        def codegen(context, builder, sig, args):
            start = builder.mul(args[2], I64(size))
            for first in range(0, BLOCK, kind.count):
                mask, vectors = None, []
                if masked:
                    mask = count_mask(builder, builder.sub(args[3], I64(first)), kind.count)
                for i in range(LANES):
                    row = builder.add(builder.extract_value(args[1], i), start)
                    raw = emit_read(builder, at(builder, row, first * 4 // each, kind), kind, mask)
                    vectors.append(builder.bitcast(raw, _VI))
                for word, column in enumerate(transpose(builder, vectors)):
                    for e, value in enumerate(_elements(builder, column, form.codes)):
                        place = (first + word * each + e) * NR * 4
                        builder.store(value, at(builder, args[0], place, _VF), align=4)
            return context.get_dummy_value()

        return signature(types.none, panel, rows, block, count), codegen

    return intrinsic(op)


def _word_reader(form):
    whole, partial = _block_transposer(form, False), _block_transposer(form, True)

    @inline
    def read(rows_of, params, panel, some, n, k, here):
        rows = rows_of(params, n, params[N] - 1)
        for done in range(0, here, BLOCK):
            if here - done >= BLOCK:
                whole(panel, rows, (k + done) // BLOCK, 0)
            else:
                partial(panel, rows, (k + done) // BLOCK, here - done)
            panel += BLOCK * NR * 4

    return read


# ---------------------------------------------------------------- forms that are decoded


def _block_reader(form):
    whole, partial = decoder(form)
    tails, stride = has_tail(form), SOME * BLOCK * 4

    @inline
    def decode_blocks(rows_of, params, some, n, first, here):
        """`here` inputs from block `first` on of LANES rows from n on, each row in turn."""
        for i in range(LANES):
            planes, target = rows_of(params, n + i, params[N] - 1), f32(some + i * stride)
            for b in range(here // BLOCK):
                put(target + b * BLOCK, whole(planes, first + b))
            if tails and here % BLOCK != 0:
                last = here // BLOCK
                put(target + last * BLOCK, partial(planes, first + last, here % BLOCK))

    @inline
    def read(rows_of, params, panel, some, n, k, here):
        for done in range(0, here, SOME * BLOCK):
            count = min(here - done, SOME * BLOCK)
            decode_blocks(rows_of, params, some, n, (k + done) // BLOCK, count)
            for b in range((count + BLOCK - 1) // BLOCK):
                transpose_block(panel, some + b * BLOCK * 4, stride)
                panel += BLOCK * NR * 4

    return read
