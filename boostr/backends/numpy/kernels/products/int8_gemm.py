"""w8a8 for many rows of x: both sides in int8, products summed exactly in int32.

    y[m, n] = s[m] t[n] sum over k of q[m, k] w[n, k]   (+ bias) (+ residual)

q and s as in `int8.py`, w int8 [N, K], t f32 [N]. Two calls. `pack` rounds x and lays it out in
tiles of R rows: a head (s of each row, the offset of each row), then words [K / GROUP, R] of
GROUP neighbouring elements. `product` takes one panel of NR rows of w against a range of these
tiles: it puts DEPTH columns of the panel, transposed to words [DEPTH / GROUP, NR], on its stack,
and for each tile adds up R x NR sums in registers, GROUP * NR multiplications an instruction.
Sums over more than DEPTH columns lie as int32 in y until the last columns come.

`jit.Target.int8_dot` says how words are multiplied:
dpbusd   4 elements, unsigned by signed: the panel holds w + 128, and the sums begin at the row's
         offset, -128 sum over k of q[m, k]
sdot     4 elements, both signed
pmaddwd  2 elements, both as int16

Limits: K < 133000, so that the sums fit int32. On the way there they may wrap, which is harmless.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.ahead import asker
from boostr.backends.numpy.kernels.products.codes import BLOCK
from boostr.backends.numpy.kernels.products.int8 import row_scale
from boostr.backends.numpy.kernels.products.tiles import COLUMN_VECTORS, NR, transpose
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import (
    count_mask,
    emit_read,
    f32,
    i32,
    load,
    load_n,
    put,
    spread,
    stack,
    store_n,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    call,
    i32x,
    inline,
    intrinsic,
    signature,
    splat,
    to_f32,
)
from boostr.backends.numpy.runtime import jit
from boostr.quant.forms import W8A8

X, LDX, CODES, SCALES = layout.X, layout.LDX, layout.CODES, layout.SCALES
Y, LDY, M, N, K, BIAS = layout.Y, layout.LDY, layout.M, layout.N, layout.K, layout.BIAS
RESIDUAL, LDR, PACKED, TILES_PER_ITEM = (
    layout.RESIDUAL,
    layout.LDR,
    layout.PACKED,
    layout.TILES_PER_ITEM,
)

ROUTE = jit.target().int8_dot
GROUP = layout.int8_group(ROUTE)  # elements in a word of 32 bits
SPAN = GROUP * LANES  # elements in a vector of words
HEAD, OFFSETS = layout.INT8_HEAD, layout.INT8_OFFSETS
_ELEMENT = I8 if GROUP == 4 else I16
_VI, _VF = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
_BYTES, _ELEMENTS = ir.VectorType(I8, SPAN), ir.VectorType(_ELEMENT, SPAN)
_FLIP = ir.Constant(_VI, [-0x7F7F7F80] * LANES)  # 0x80 in each byte: int8 + 128 as unsigned
tile_bytes = inline(layout.int8_tile)


def _at(builder, address, offset, kind):
    where = builder.add(address, I64(offset)) if offset else address
    return builder.inttoptr(where, ir.PointerType(kind))


def _dot(builder, total, panel, x):
    """total[i] += the sum of the products of word i of `panel` and word i of `x`."""
    if ROUTE == "dpbusd":
        name = f"llvm.x86.avx512.vpdpbusd.{LANES * 32}"
        return call(builder, name, _VI, [total, panel, x])
    panel, x = builder.bitcast(panel, _ELEMENTS), builder.bitcast(x, _ELEMENTS)
    if ROUTE == "sdot":
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", _VI, [total, panel, x])
    name = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[LANES]
    return builder.add(total, call(builder, f"llvm.x86.{name}", _VI, [panel, x]))


# ---------------------------------------------------------------- x


def _rounded(builder, address, divisor, count):
    """SPAN elements of x, from `address` on, `count` of them real, as a vector of words."""

    def const(value):
        return ir.Constant(_VF, [value] * LANES)

    parts = []
    for g in range(GROUP):
        mask = count_mask(builder, builder.sub(count, I64(g * LANES)), LANES)
        x = emit_read(builder, _at(builder, address, g * LANES * 4, _VF), _VF, mask)
        q = call(builder, f"llvm.rint.v{LANES}f32", _VF, [builder.fdiv(x, divisor, flags=("nsz",))])
        for order, bound in (("<", -127.0), (">", 127.0)):
            q = builder.select(builder.fcmp_ordered(order, q, const(bound)), const(bound), q)
        whole = builder.fptosi(q, _VI)
        parts.append(builder.trunc(whole, ir.VectorType(_ELEMENT, LANES)))
    while len(parts) > 1:
        size = parts[0].type.count * 2
        order = ir.Constant(ir.VectorType(I32, size), list(range(size)))
        parts = [builder.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2])]  # noqa: B905
    return builder.bitcast(parts[0], _VI)


@intrinsic
def pack_words(typingctx, head, target, rows, k, count):
    """Rounds SPAN elements from k on of R rows of x and writes them as words [LANES, R].

    `count` of the elements exist, zeros are taken for the others. Up to LANES - 1 words after the
    last one are overwritten. With dpbusd it also adds 128 q to the offsets in `head`.
    """
    many = len(rows)

    def codegen(context, builder, sig, values):
        base, words, row_tuple, offset, valid = values
        vectors = []
        for r in range(many):
            row = builder.extract_value(row_tuple, r)
            scale = builder.load(_at(builder, base, r * 4, F32), align=4)
            zero = builder.fcmp_ordered("==", scale, F32(0.0))
            divisor = splat(builder, builder.select(zero, F32(1.0), scale), LANES)
            where = builder.add(row, builder.mul(offset, I64(4)))
            vectors.append(_rounded(builder, where, divisor, valid))
        groups = -(-many // LANES)
        vectors += [ir.Constant(_VI, [0] * LANES)] * (groups * LANES - many)
        columns = [transpose(builder, vectors[g * LANES :][:LANES]) for g in range(groups)]
        for i in range(LANES):
            for g in range(groups):
                where = _at(builder, words, (i * many + g * LANES) * 4, _VI)
                builder.store(columns[g][i], where, align=4)
        if ROUTE == "dpbusd":
            for g in range(groups):
                where = _at(builder, base, OFFSETS + g * LANES * 4, _VI)
                total = builder.load(where, align=4)
                for column in columns[g]:
                    total = _dot(builder, total, _FLIP, column)
                builder.store(total, where, align=4)
        return context.get_dummy_value()

    number = types.int64
    return signature(types.none, number, number, rows, number, number), codegen


def pack(rows: int):
    """Item t rounds and packs tile t, of `rows` rows of x; those past M repeat the last one."""

    def kernel(params, start, stop):
        length, last, stride = params[K], params[M] - 1, params[LDX] * 4
        for tile in range(start, stop):
            head = params[PACKED] + tile * tile_bytes(length, rows, SPAN, GROUP)
            for r in range(HEAD // 8):
                i32(head + OFFSETS)[r] = 0
            for r in range(rows):
                f32(head)[r] = row_scale(
                    f32(params[X] + min(tile * rows + r, last) * stride), length
                )
            xs, target = spread(rows, params[X], stride, tile * rows, last), head + HEAD
            for k in range(0, length, SPAN):
                pack_words(head, target, xs, k, length - k)
                target += LANES * rows * 4

    return kernel


# ---------------------------------------------------------------- the product


@intrinsic
def pack_panel(typingctx, panel, rows, k, count):
    """Writes SPAN elements from k on of LANES rows of w as words [LANES, NR]; see `pack_words`."""

    def codegen(context, builder, sig, values):
        base, row_tuple, offset, valid = values
        mask = count_mask(builder, valid, SPAN)
        vectors = []
        for r in range(LANES):
            where = _at(
                builder, builder.add(builder.extract_value(row_tuple, r), offset), 0, _BYTES
            )
            raw = emit_read(builder, where, _BYTES, mask)
            if GROUP == 2:
                raw = builder.sext(raw, _ELEMENTS)
            words = builder.bitcast(raw, _VI)
            vectors.append(builder.xor(words, _FLIP) if ROUTE == "dpbusd" else words)
        for i, column in enumerate(transpose(builder, vectors)):
            builder.store(column, _at(builder, base, i * NR * 4, _VI), align=4)
        return context.get_dummy_value()

    return signature(types.none, types.int64, rows, types.int64, types.int64), codegen


@intrinsic
def begin(typingctx, rows, offsets, real):
    """COLUMN_VECTORS sums for each of `rows` (a constant) rows of x: those of row r are minus its
    offset, or 0 if `real` is 0."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    many = rows.literal_value
    result = types.UniTuple(i32x, many * COLUMN_VECTORS)

    def codegen(context, builder, sig, values):
        out = []
        used = builder.icmp_signed("!=", values[2], I64(0))
        for r in range(many):
            offset = builder.load(_at(builder, values[1], r * 4, I32), align=4)
            offset = builder.select(used, builder.neg(offset), I32(0))
            out += [splat(builder, offset, LANES)] * COLUMN_VECTORS
        return context.make_tuple(builder, result, out)

    return signature(result, rows, types.int64, types.int64), codegen


def stepper(apart: int):
    """An intrinsic op(a, b, acc): acc[r, v] += products of the word of row r, at a + r * apart,
    with the words of column vector v at `b`."""

    def op(typingctx, a, b, acc):
        def codegen(context, builder, sig, values):
            out = [builder.extract_value(values[2], i) for i in range(len(acc))]
            columns = [
                builder.load(_at(builder, values[1], v * LANES * 4, _VI), align=4)
                for v in range(COLUMN_VECTORS)
            ]
            for r in range(len(acc) // COLUMN_VECTORS):
                word = builder.load(_at(builder, values[0], r * apart, I32), align=4)
                x = splat(builder, word, LANES)
                for v in range(COLUMN_VECTORS):
                    i = r * COLUMN_VECTORS + v
                    out[i] = _dot(builder, out[i], columns[v], x)
            return context.make_tuple(builder, acc, out)

        return signature(acc, a, b, acc), codegen

    return intrinsic(op)


@inline
def _finish(params, result, head, first, many, n, partial):
    """Scales the sums at `result` and writes them to `many` rows from `first` on of y, if there
    are as many, from column n on.

    `partial` > 0: y holds sums of earlier columns of x; bit 1: and more are to come.
    """
    columns = min(NR, params[N] - n)
    for r in range(min(many, params[M] - first)):
        y = params[Y] + (first + r) * params[LDY] * 4
        residual = f32(params[RESIDUAL]) + (first + r) * params[LDR]
        for j in range(0, columns, LANES):
            count = columns - j
            total = load(i32(result), r * NR + j)
            if partial & 1:
                total += load_n(i32(y), n + j, count)
            if partial & 2:
                store_n(i32(y), n + j, total, count)
            else:
                value = to_f32(total) * f32(head)[r] * load_n(f32(params[SCALES]), n + j, count)
                if params[BIAS] != 0:
                    value += load_n(f32(params[BIAS]), n + j, count)
                if params[RESIDUAL] != 0:
                    value += load_n(residual, n + j, count)
                store_n(f32(y), n + j, value, count)


@inline
def _fill_panel(params, panel, n, k, here):
    last = params[N] - 1
    for v in range(COLUMN_VECTORS):
        rows = spread(LANES, params[CODES], params[CODES + 1], n + v * LANES, last)
        for e in range(0, here, SPAN):
            target = panel + (e // GROUP * NR + v * LANES) * 4
            pack_panel(target, rows, k + e, here - e)


def product(depth: int, rows: int):
    """Item i: tiles (i % G) T .. of panel i // G; T = params[TILES_PER_ITEM], G = ceil(tiles / T).

    `depth` is DEPTH, a multiple of SPAN; `rows` those of a tile.
    """
    panel_words, tile_words, ask = depth // GROUP * NR, rows * NR, asker(W8A8, NR)
    step = stepper(4)

    def kernel(params, start, stop):
        length, per_item = params[K], params[TILES_PER_ITEM]
        tiles, size = (params[M] + rows - 1) // rows, tile_bytes(length, rows, SPAN, GROUP)
        groups = (tiles + per_item - 1) // per_item
        panel, result = stack(panel_words), stack(tile_words)
        for item in range(start, stop):
            n, first = item // groups * NR, item % groups * per_item
            end = min(first + per_item, tiles)
            for k in range(0, max(length, 1), depth):
                here = min(depth, length - k)
                partial = int(k > 0) + 2 * int(k + depth < length)
                _fill_panel(params, panel, n, k, here)
                next_k = k + depth if k + depth < length else 0
                next_n = n if next_k > 0 else n + NR
                for t in range(first, end):
                    head, b = params[PACKED] + t * size, panel
                    a = head + HEAD + k // GROUP * rows * 4
                    acc = begin(rows, head + OFFSETS, int(k == 0))
                    for done in range(0, here, BLOCK):
                        ask(params, next_n, (next_k + done) // BLOCK, t - first, end - first)
                        for _ in range((min(here - done, BLOCK) + GROUP - 1) // GROUP):
                            acc = step(a, b, acc)
                            a += rows * 4
                            b += NR * 4
                    put(i32(result), acc)
                    _finish(params, result, head, t * rows, rows, n, partial)

    return kernel
