"""Integer codes times many rows of x in integers: `gemv_digits.py` in the tiles of `gemm.py`.

    y[m, n] = sum over blocks b of s[m, b] d[n, b] sum(v (u - c)) + offset[n, b] s[m, b] sum(v)

with x = s v, v = 256 high + low, codes u and their centre c as there. Two calls. `pack` writes for
each tile of MR rows of x and each block of 32 elements a record, for the rows one after the other
    32 bytes of high digits, 32 of low ones
then for all rows f32 s, and for each half of the block i32 -sum(v) and f32 s sum(v).

`product` takes one panel of NR rows of w against a range of these tiles: it lays DEPTH columns of
codes out on its stack, in words of 4 neighbouring inputs [DEPTH / 4, NR], each 8 of them followed
by the scales and offsets [NR] of their groups. A block of the panel stays in registers while each
row of the tile meets it: 16 dot products for each vector of rows of w, twice the multiplications of
as many f32 instructions, then one conversion and two products for the scales. A tile of few rows is
enough, as the panel is read from L1 and each word of x serves COLUMN_VECTORS vectors.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, VECTORS
from boostr.backends.numpy.kernels.products.gemm import writer
from boostr.backends.numpy.kernels.products.gemv_digits import (
    BASE_BITS,
    LARGEST,
    by_halves,
    cut,
    dot,
    fixed_point,
    fma,
)
from boostr.backends.numpy.kernels.products.steps import (
    BYTES,
    ROWS,
    STEP,
    VB,
    VF,
    VI,
    centre,
    has_offsets,
    parts,
    step_codes,
    step_groups,
    super_of,
)
from boostr.backends.numpy.kernels.products.tiles import transpose
from boostr.backends.numpy.kernels.products.weights import (
    load_block,
    plane_rows,
    scales_last,
    split_rows,
)
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, f32, i32, put, spread, stack
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I32,
    LANES,
    constant,
    fill,
    inline,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add
from boostr.backends.numpy.runtime import jit

X, LDX, M, N, K = layout.X, layout.LDX, layout.M, layout.N, layout.K
PACKED, TILES_PER_ITEM = layout.PACKED, layout.TILES_PER_ITEM
MR, COLUMN_VECTORS = jit.target().digit_tile
NR = COLUMN_VECTORS * LANES
WORDS = BLOCK // 4
ROW = 2 * BLOCK  # bytes of a row's digits in a record
RECORD = layout.digit_block(MR)
_QUAD = ir.VectorType(I32, ROWS)


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


def pack():
    """Item t is tile t; rows past M repeat the last one."""

    largest = LARGEST[2]

    def kernel(params, start, stop):
        blocks, last = params[K] // BLOCK, params[M] - 1
        for tile in range(start, stop):
            for b in range(blocks):
                record = params[PACKED] + (tile * blocks + b) * RECORD
                rest = record + MR * ROW
                for r in range(MR):
                    m = min(tile * MR + r, last)
                    values = load_block(spread(1, params[X], params[LDX] * 4, m, m), b)
                    whole, s = fixed_point(values, largest)
                    store_digits(record + r * ROW, whole)
                    sums = reduce_add(by_halves(whole))
                    f32(rest)[r] = s
                    for half in range(2):
                        i32(rest)[(1 + half) * MR + r] = -sums[half]
                        f32(rest)[(3 + half) * MR + r] = s * sums[half]

    return kernel


class _Record:
    """A block of a tile of x; numbers of a row are spread over vectors."""

    def __init__(self, builder, address):
        self.builder, self.address = builder, address

    def _spread(self, offset, kind):
        where = at(self.builder, self.address, offset, kind)
        return splat(self.builder, self.builder.load(where, align=4), LANES)

    def digits(self, r, place, word):
        """4 neighbouring digits of row r."""
        return self._spread(r * ROW + place * BLOCK + word * 4, I32)

    def scale(self, r):
        return self._spread(MR * ROW + r * 4, F32)

    def minus_sums(self, r, halves):
        return self._of_halves(r, halves, 1, I32, self.builder.add)

    def scaled_sums(self, r, halves):
        return self._of_halves(r, halves, 3, F32, self.builder.fadd)

    def _of_halves(self, r, halves, first, kind, add):
        found = [self._spread(MR * (ROW + (first + h) * 4) + r * 4, kind) for h in halves]
        return found[0] if len(found) == 1 else add(*found)


# ---------------------------------------------------------------- the panel


def offsets_of(form) -> bool:
    """Whether blocks of the panel have offsets."""
    return has_offsets(form, centre(form))


def extras(form) -> int:
    """Vectors of scales and offsets that a block of rows of w has."""
    return parts(form) * (int(not scales_last(form)) + int(offsets_of(form)))


def block_bytes(form) -> int:
    """Of a block of the panel."""
    return (WORDS + extras(form)) * NR * 4


def step_bytes(form) -> int:
    """Of a step of ROWS rows, as `rows_storer` writes it."""
    return (2 * ROWS + extras(form)) * BYTES


def rows_storer(form, masked: bool):
    """An intrinsic op(target, rows, block, valid): writes a step of ROWS rows of w as it is, two
    vectors of codes of each row, then scales and offsets. `masked`: only `valid` blocks exist."""

    def op(typingctx, target, rows, block, valid):
        def codegen(context, builder, sig, args):
            planes, limit = split_rows(builder, form, args[1]), args[3] if masked else None
            vectors = []
            for row in planes:
                vectors += step_codes(builder, form, row, args[2], limit)
            above = super_of(builder, form, args[2])
            groups = step_groups(builder, form, planes, args[2], above, centre(form), limit)
            vectors += [value for group in groups for value in group if value is not None]
            for i, value in enumerate(vectors):
                builder.store(value, at(builder, args[0], i * BYTES, value.type), align=4)
            return context.get_dummy_value()

        return signature(types.none, target, rows, block, valid), codegen

    return intrinsic(op)


def step_transposer(form):
    """An intrinsic op(panel, source): a step of LANES rows, as `rows_storer` wrote them one after
    the other, becomes STEP blocks of a vector of the panel's rows."""
    size, stride = block_bytes(form), step_bytes(form)

    def op(typingctx, panel, source):
        def codegen(context, builder, sig, args):
            def vector(quad, i):
                place = at(builder, args[1], quad * stride + i * BYTES, VI)
                return builder.load(place, align=4)

            def store(value, block, word, first=0):
                place = block * size + (word * NR + first) * 4
                builder.store(value, at(builder, args[0], place, value.type), align=4)

            for half in range(2):
                rows = [vector(i // ROWS, i % ROWS * 2 + half) for i in range(LANES)]
                for lane, column in enumerate(transpose(builder, rows)):
                    store(column, lane // 4, half * 4 + lane % 4)
            for quad in range(LANES // ROWS):
                for i in range(extras(form)):
                    values = vector(quad, 2 * ROWS + i)
                    for block in range(STEP):
                        lanes = constant([r * STEP + block for r in range(ROWS)], _QUAD)
                        column = builder.shuffle_vector(values, values, lanes)
                        store(column, block, WORDS + i, quad * ROWS)
            return context.get_dummy_value()

        return signature(types.none, panel, source), codegen

    return intrinsic(op)


def panel_filler(form):
    """fill_panel(params, panel, some, n, block, here): `here` blocks from `block` on of NR rows
    from n on; `some` has room for a step of LANES rows."""
    whole, partial = rows_storer(form, False), rows_storer(form, True)
    transposed, size, stride = step_transposer(form), block_bytes(form), step_bytes(form)
    rows_of = plane_rows(form, ROWS)

    @inline
    def fill_panel(params, panel, some, n, block, here):
        for v in range(COLUMN_VECTORS):
            for b in range(0, here, STEP):
                for i in range(0, LANES, ROWS):
                    planes = rows_of(params, n + v * LANES + i, params[N] - 1)
                    if here - b >= STEP:
                        whole(some + i // ROWS * stride, planes, block + b, 0)
                    else:
                        partial(some + i // ROWS * stride, planes, block + b, here - b)
                transposed(panel + b * size + v * LANES * 4, some)

    return fill_panel


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


def multiplier(form):
    """An intrinsic op(panel, record, acc): acc[r, v] += the products of a block."""

    def op(typingctx, panel, record, acc):
        def codegen(context, builder, sig, args):
            out = [builder.extract_value(args[2], i) for i in range(len(acc))]
            x = _Record(builder, args[1])
            for part in (_Part(builder, form, args[0], p) for p in range(parts(form))):
                for r in range(MR):
                    for v, total in enumerate(part.totals(builder, x, r, centre(form))):
                        i, value = r * COLUMN_VECTORS + v, builder.sitofp(total, VF)
                        if part.scales:
                            value = builder.fmul(value, part.scales[v])
                        out[i] = fma(builder, value, x.scale(r), out[i])
                        if part.offsets:
                            sums = x.scaled_sums(r, part.halves)
                            out[i] = fma(builder, part.offsets[v], sums, out[i])
            return context.make_tuple(builder, acc, out)

        return signature(acc, panel, record, acc), codegen

    return intrinsic(op)


def product(form, depth: int):
    """Item i: tiles (i % G) T .. of panel i // G; T = params[TILES_PER_ITEM], G = ceil(tiles / T).

    `depth` is DEPTH, a multiple of 32 STEP.
    """
    fill_panel, multiply = panel_filler(form), multiplier(form)
    write, size, chunk = writer(MR, NR, scales_last(form)), block_bytes(form), depth // BLOCK
    panel_floats, some_floats = chunk * size // 4, LANES // ROWS * step_bytes(form) // 4
    tile, tile_floats = MR * COLUMN_VECTORS, MR * NR

    def kernel(params, start, stop):
        blocks, per_item = params[K] // BLOCK, params[TILES_PER_ITEM]
        tiles = (params[M] + MR - 1) // MR
        groups = (tiles + per_item - 1) // per_item
        panel, some, result = stack(panel_floats), stack(some_floats), f32(stack(tile_floats))
        for item in range(start, stop):
            n, first = item // groups * NR, item % groups * per_item
            for block in range(0, blocks, chunk):
                here = min(chunk, blocks - block)
                fill_panel(params, panel, some, n, block, here)
                for t in range(first, min(first + per_item, tiles)):
                    record, b = params[PACKED] + (t * blocks + block) * RECORD, panel
                    acc = fill(tile, 0.0)
                    for _ in range(here):
                        acc = multiply(b, record, acc)
                        record += RECORD
                        b += size
                    put(result, acc)
                    write(params, result, t, n, block)

    return kernel
