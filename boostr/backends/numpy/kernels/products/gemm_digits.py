"""Integer codes times many rows of x in integers: `gemv_digits.py` in the tiles of `gemm.py`.

    y[m, n] = sum over blocks b of s[m, b] d[n, b] sum(v (u - c)) + offset[n, b] s[m, b] sum(v)

with x = s v, v = 256 high + low, codes u and their centre c as there. Two calls. `pack` writes for
each tile of R rows of x and each block of 32 elements a record, for the rows one after the other
    32 bytes of high digits, 32 of low ones
then for all rows f32 s, and for each half of the block i32 -sum(v) and f32 s sum(v).

`product` takes one panel of NR rows of w against a range of these tiles: it lays DEPTH columns of
codes out on its stack (`digit_panels.py`). A block of the panel stays in registers while each row
of the tile meets it: 16 dot products for each vector of rows of w, twice the multiplications of as
many f32 instructions, then for each group a conversion and a product with its scale, and one with
x's. A tile of few rows is enough, as each word of x serves COLUMN_VECTORS vectors; what a tile adds
up for a row does not depend on how many rows it has. Meanwhile the next panel is asked for
(`ahead.py`).
"""

from llvmlite import ir
from numba import types

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
    BASE_BITS,
    by_halves,
    cut,
    tile_packer,
)
from boostr.backends.numpy.kernels.products.gemv_digits import dot
from boostr.backends.numpy.kernels.products.steps import BYTES, VB, VF, VI, centre, parts
from boostr.backends.numpy.kernels.products.weights import scales_last
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, f32, i32, put
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I32,
    LANES,
    constant,
    emit_fma,
    fill,
    inline,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

ROW = 2 * BLOCK  # bytes of a row's digits in a record


# ---------------------------------------------------------------- x


@intrinsic
def store_digits(typingctx, target, values):
    """Writes the digits of a block of whole numbers, the high ones first."""

    def codegen(context, builder, sig, args):
        narrow = ir.VectorType(I8, LANES)
        for v in range(VECTORS):
            value = builder.extract_value(args[1], v)
            for place, digit in enumerate(cut(builder, value, 2)):
                where = at(builder, args[0], place * BLOCK + v * LANES, narrow)
                builder.store(builder.trunc(digit, narrow), where, align=1)
        return context.get_dummy_value()

    return signature(types.none, target, values), codegen


def pack(rows: int):
    """Item t is tile t, of `rows` rows of x."""

    @inline
    def write(record, r, whole, s):
        store_digits(record + r * ROW, whole)
        rest, sums = record + rows * ROW, reduce_add(by_halves(whole))
        f32(rest)[r] = s
        for half in range(2):
            i32(rest)[(1 + half) * rows + r] = -sums[half]
            f32(rest)[(3 + half) * rows + r] = s * sums[half]

    return tile_packer(rows, layout.digit_block(rows), write)


class _Record:
    """A block of a tile of x; numbers of a row are spread over vectors."""

    def __init__(self, builder, rows, address):
        self.builder, self.rows, self.address = builder, rows, address

    def _spread(self, offset, kind):
        where = at(self.builder, self.address, offset, kind)
        return splat(self.builder, self.builder.load(where, align=4), LANES)

    def digits(self, r, place, word):
        """4 neighbouring digits of row r."""
        return self._spread(r * ROW + place * BLOCK + word * 4, I32)

    def scale(self, r):
        return self._spread(self.rows * ROW + r * 4, F32)

    def minus_sums(self, r, halves):
        return self._of_halves(r, halves, 1, I32, self.builder.add)

    def scaled_sums(self, r, halves):
        return self._of_halves(r, halves, 3, F32, self.builder.fadd)

    def _of_halves(self, r, halves, first, kind, add):
        start = self.rows * (ROW + first * 4) + r * 4
        found = [self._spread(start + self.rows * h * 4, kind) for h in halves]
        return found[0] if len(found) == 1 else add(*found)


# ---------------------------------------------------------------- the product


class _Part:
    """A block of the panel, or the half of it that a group has, in registers."""

    def __init__(self, builder, form, address, part):
        count, extra = WORDS // parts(form), extras(form) // parts(form)
        self.halves, self.first = ((0, 1) if parts(form) == 1 else (part,)), part * count
        self.words = [self._load(builder, address, self.first + i, VI) for i in range(count)]
        rest = [self._load(builder, address, WORDS + part * extra + i, VF) for i in range(extra)]
        self.scales = None if scales_last(form) else rest[0]
        self.offsets = rest[-1] if offsets_of(form) else None

    @staticmethod
    def _load(builder, address, index, kind):
        where = (at(builder, address, (index * COLUMN_VECTORS + v) * BYTES, kind)
                 for v in range(COLUMN_VECTORS))  # fmt: skip
        return [builder.load(p, align=4) for p in where]

    def totals(self, builder, x, r, centre_):
        """sum(v (u - c)) with row r, as i32."""
        high = low = [constant(0, VI)] * COLUMN_VECTORS
        if centre_:  # a power of two
            shift = constant(centre_.bit_length() - 1, VI)
            low = [builder.shl(x.minus_sums(r, self.halves), shift)] * COLUMN_VECTORS
        for i, word in enumerate(self.words):
            digits = [builder.bitcast(x.digits(r, p, self.first + i), VB) for p in range(2)]
            codes = [builder.bitcast(w, VB) for w in word]
            high = [dot(builder, t, w, digits[0]) for t, w in zip(high, codes, strict=True)]
            low = [dot(builder, t, w, digits[1]) for t, w in zip(low, codes, strict=True)]
        base = constant(BASE_BITS[2], VI)
        return [builder.add(builder.shl(h, base), t) for h, t in zip(high, low, strict=True)]


def _added(builder, form, groups, x, r, sums):
    """`sums` of row r with the products of a block added; x's scale last and once, as it costs as
    much as a dot product."""
    worth: list = [None] * COLUMN_VECTORS
    for part in groups:
        for v, total in enumerate(part.totals(builder, x, r, centre(form))):
            value = builder.sitofp(total, VF)
            if not part.scales:
                worth[v] = value
            elif worth[v] is None:
                worth[v] = builder.fmul(value, part.scales[v])
            else:
                worth[v] = emit_fma(builder, value, part.scales[v], worth[v])
    sums = [emit_fma(builder, w, x.scale(r), total) for w, total in zip(worth, sums, strict=True)]
    for part in groups:
        if part.offsets:
            scaled = x.scaled_sums(r, part.halves)
            pairs = zip(part.offsets, sums, strict=True)
            sums = [emit_fma(builder, offset, scaled, total) for offset, total in pairs]
    return sums


def multiplier(form):
    """An intrinsic op(panel, record, acc): acc[r, v] += the products of a block."""

    def op(typingctx, panel, record, acc):
        def codegen(context, builder, sig, args):
            out = [builder.extract_value(args[2], i) for i in range(len(acc))]
            rows = len(acc) // COLUMN_VECTORS
            x = _Record(builder, rows, args[1])
            groups = [_Part(builder, form, args[0], p) for p in range(parts(form))]
            for r in range(rows):
                mine = slice(r * COLUMN_VECTORS, (r + 1) * COLUMN_VECTORS)
                out[mine] = _added(builder, form, groups, x, r, out[mine])
            return context.make_tuple(builder, acc, out)

        return signature(acc, panel, record, acc), codegen

    return intrinsic(op)


def product(form, depth: int, rows: int):
    """See `digit_panels.panel_walker`."""
    multiply, ask, tile = multiplier(form), asker(form, NR), rows * COLUMN_VECTORS
    size, record_bytes = block_bytes(form), layout.digit_block(rows)

    @inline
    def of_tile(result, record, panel, here, params, n, block, turn, turns):
        acc = fill(tile, 0.0)
        for i in range(here):
            ask(params, n, block + i, turn, turns)
            acc = multiply(panel + i * size, record + i * record_bytes, acc)
        put(result, acc)

    return panel_walker(form, depth, rows, record_bytes, of_tile)
