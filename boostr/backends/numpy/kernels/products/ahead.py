"""Weights asked for before they are read, into L2: few loads can be on their way to L1.

Rows of weights side by side are streams, and each plane is one more: prefetchers follow them badly.
A panel of a tiled product is read so, and then nothing is read for as long as the product takes:
without this, memory and arithmetic would wait for each other.
"""

from fractions import Fraction

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, STORED, block_bytes, fields
from boostr.backends.numpy.kernels.products.weights import plane_names
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, prefetch
from boostr.backends.numpy.kernels.runtime.simd import (
    I8,
    I32,
    I64,
    call,
    inline,
    intrinsic,
    signature,
)

LINE = 64  # bytes
_FAR = 8192  # bytes of codes between what a GEMV reads and what it asks for, at the least
_L2 = 2


def _plane_bytes(form, name) -> Fraction:
    """Bytes of a block of a row in a plane; 0 for what a row has once."""
    if name == "codes":
        return Fraction(block_bytes(form))
    if name == "high":
        return Fraction(4 * fields(form)[1])
    if name in ("supers", "floors"):
        return Fraction(4 * BLOCK, form.super)
    kinds = {"scales": form.scale, "offsets": form.offsets, "zeros": "i8"}
    return Fraction(STORED[kinds[name]][1] * BLOCK, form.group) if form.group else Fraction(0)


@inline
def rows_ahead(params, rows):
    """How far ahead a GEMV asks that takes `rows` rows at a time. Whole groups of them: planes stay
    in step, and the last row of a group, which is read with the first, has been asked for."""
    return max(1, -(-_FAR // (params[layout.CODES + 1] * rows))) * rows


def scale_asker(form, rows: int):
    """ask(params, n): asks for the scales and offsets of groups of `rows` rows from n on."""
    rates = {layout.PLANES[n]: _plane_bytes(form, n) for n in plane_names(form)
             if n not in ("codes", "high")}  # fmt: skip
    planes = tuple((slot, rate.numerator, rate.denominator) for slot, rate in rates.items())

    @inline
    def ask(params, n):
        for slot, some, blocks in planes:
            start, step = params[slot] + n * params[slot + 1], params[slot + 1]
            of_row = params[layout.K] // BLOCK * some // blocks  # less than `step` in a slice
            for line in range(0, rows * min(of_row, step), LINE):
                prefetch(start + line, LINE, _L2)

    @inline
    def nothing(params, n):
        pass

    return ask if planes else nothing


def asker(form, rows: int):
    """ask(params, n, block, turn, turns): asks for block `block` of a share of `rows` rows from n
    on, such that `turns` calls ask for all. Any row and block may be named."""
    ask_row = _row_asker(form)

    @inline
    def ask(params, n, block, turn, turns):
        for row in range(rows * turn // turns, rows * (turn + 1) // turns):
            ask_row(params, n + row, block)

    return ask


def _row_asker(form):
    """An intrinsic op(params, row, block): fetches the lines that begin with this block into L2."""
    rates = {layout.PLANES[name]: _plane_bytes(form, name) for name in plane_names(form)}
    rates = {slot: rate for slot, rate in rates.items() if rate}

    def op(typingctx, params, row, block):
        def codegen(context, builder, sig, args):
            def word(slot):
                return builder.load(at(builder, args[0], 8 * slot, I64), align=8)

            for slot, rate in rates.items():
                apart = max(int(LINE / rate), 1)  # blocks from one line to the next
                first = builder.srem(args[2], I64(apart))
                with builder.if_then(builder.icmp_signed("==", first, I64(0))):
                    offset = builder.mul(args[2], I64(rate.numerator))
                    offset = builder.sdiv(offset, I64(rate.denominator))
                    start = builder.add(word(slot), builder.mul(args[1], word(slot + 1)))
                    for line in range(0, max(int(rate), 1), LINE):
                        where = at(builder, builder.add(start, offset), line, I8)
                        hints = I32(0), I32(_L2), I32(1)
                        call(builder, "llvm.prefetch.p0", ir.VoidType(), [where, *hints])
            return context.get_dummy_value()

        return signature(types.none, params, types.int64, types.int64), codegen

    return intrinsic(op)
