"""Panels of integer codes for `gemm_digits.py` and `gemm_words.py`: NR rows of w, side by side; and
the walk of panels past tiles of x.

Each block of 32 inputs of a panel is WORDS vectors [NR], then the scales and offsets [NR] of its
groups, which `extras` counts. A word is 4 neighbouring code bytes (`steps.py`), or where products
are of 16 bits two codes less their centre: of such 4 the first and the third, then the others.

Rows are read a vector of words at a time and transposed as they are stored: a word of a field of
`bits` holds the bits of 4 inputs 8 / bits times, those of word t bits + j of the block in word j,
shifted by t bits.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import BLOCK, fields
from boostr.backends.numpy.kernels.products.gemm import writer
from boostr.backends.numpy.kernels.products.steps import (
    ROWS,
    STEP,
    VB,
    VI,
    VW,
    byte_words,
    centre,
    has_offsets,
    number_bytes,
    parts,
    step_groups,
    super_of,
)
from boostr.backends.numpy.kernels.products.tiles import transpose
from boostr.backends.numpy.kernels.products.weights import (
    plane_rows,
    scales_last,
    split_rows,
)
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, count_mask, emit_read, f32, stack
from boostr.backends.numpy.kernels.runtime.simd import (
    I32,
    I64,
    LANES,
    constant,
    inline,
    intrinsic,
    signature,
)
from boostr.backends.numpy.runtime import jit

COLUMN_VECTORS = jit.target().digit_tile[1]
M, N, K = layout.M, layout.N, layout.K
PACKED, TILES_PER_ITEM = layout.PACKED, layout.TILES_PER_ITEM
NR = COLUMN_VECTORS * LANES
GROUP = layout.int8_group(jit.target().int8_dot)  # codes of a word
WORDS = BLOCK // GROUP
_QUAD = ir.VectorType(I32, ROWS)


def offsets_of(form) -> bool:
    """Whether blocks of the panel have offsets."""
    return has_offsets(form, centre(form))


def extras(form) -> int:
    """Vectors of scales and offsets that a block of rows of w has."""
    return parts(form) * (int(not scales_last(form)) + int(offsets_of(form)))


def block_bytes(form) -> int:
    """Of a block of the panel."""
    return (WORDS + extras(form)) * NR * 4


# ---------------------------------------------------------------- reading


class _Target:
    """STEP blocks of a vector of the panel's rows."""

    def __init__(self, builder, form, address):
        self.builder, self.size, self.address = builder, block_bytes(form), address

    def place(self, block, word, kind, first=0):
        offset = block * self.size + (word * NR + first) * 4
        return at(self.builder, self.address, offset, kind)

    def store(self, value, block, word, first=0):
        self.builder.store(value, self.place(block, word, value.type, first), align=4)


def _raw_words(builder, plane, block, valid, bits):
    """For each row's plane the words that a field of `bits` has of STEP blocks, transposed.

    The result has a vector of LANES rows for each word."""
    count = STEP * bits
    found = []
    for first in range(0, count, LANES):
        width = min(LANES, count - first)
        kind, mask = ir.VectorType(I32, width), None
        if valid is not None:
            real = builder.sub(builder.mul(valid, I64(bits)), I64(first))
            mask = count_mask(builder, real, width)
        order = constant([min(i, width - 1) for i in range(LANES)], VI)
        rows = []
        for row in plane:
            offset = builder.add(builder.mul(block, I64(4 * bits)), I64(4 * first))
            raw = emit_read(builder, at(builder, row, offset, kind), kind, mask)
            rows.append(raw if width == LANES else builder.shuffle_vector(raw, raw, order))
        found += transpose(builder, rows)[:width]
    return found


def _moved(builder, value, shift):
    """Shifted right, to the left if `shift` is negative."""
    if shift == 0:
        return value
    move = builder.lshr if shift > 0 else builder.shl
    return move(value, constant(abs(shift), VI))


def _words(builder, form, codes):
    """The vectors of words that a vector of bytes as stored becomes."""
    numbers = number_bytes(builder, form, codes)
    if GROUP == 4:
        return [numbers]
    middle = constant(centre(form), VW)
    return [builder.sub(half, middle) for half in byte_words(builder, numbers)]


def _store_codes(builder, form, planes, block, valid, target):
    place = 0
    names = ("codes", "high")
    widths = fields(form) or (8,)
    for name, bits in zip(names, widths, strict=False):
        raw = _raw_words(builder, [row[name] for row in planes], block, valid, bits)
        mask = constant(((1 << bits) - 1) * 0x01010101 << place, VI)
        for i, value in enumerate(raw):
            for turn in range(8 // bits):
                where = i // bits, (turn * bits + i % bits) * 4 // GROUP
                code = value
                if bits < 8:
                    code = builder.and_(_moved(builder, value, turn * bits - place), mask)
                if name == "high":
                    below = builder.load(target.place(*where, VI), align=4)
                    code = builder.or_(code, below)
                words = [code]
                if name == names[len(widths) - 1]:
                    words = _words(builder, form, builder.bitcast(code, VB))
                for j, word in enumerate(words):
                    target.store(word, where[0], where[1] + j)
        place += bits


def _store_groups(builder, form, planes, block, valid, target):
    above = super_of(builder, form, block)
    for first in range(0, LANES, ROWS):
        quad = planes[first : first + ROWS]
        groups = step_groups(builder, form, quad, block, above, centre(form), valid)
        found = [value for group in groups for value in group if value is not None]
        for i, values in enumerate(found):
            for b in range(STEP):
                lanes = constant([r * STEP + b for r in range(ROWS)], _QUAD)
                column = builder.shuffle_vector(values, values, lanes)
                target.store(column, b, WORDS + i, first)


def step_reader(form, masked: bool):
    """An intrinsic op(target, rows, block, valid): STEP blocks of LANES rows of w become blocks of
    a vector of the panel's rows. `masked`: only `valid` blocks exist."""

    def op(typingctx, target, rows, block, valid):
        def codegen(context, builder, sig, args):
            planes, limit = split_rows(builder, form, args[1]), args[3] if masked else None
            place = _Target(builder, form, args[0])
            _store_codes(builder, form, planes, args[2], limit, place)
            _store_groups(builder, form, planes, args[2], limit, place)
            return context.get_dummy_value()

        return signature(types.none, target, rows, block, valid), codegen

    return intrinsic(op)


def panel_filler(form):
    """fill_panel(params, panel, n, block, here): `here` blocks from `block` on of NR rows from n
    on."""
    whole, partial = step_reader(form, False), step_reader(form, True)
    rows_of, size = plane_rows(form, LANES), block_bytes(form)

    @inline
    def fill_panel(params, panel, n, block, here):
        for v in range(COLUMN_VECTORS):
            planes, target = rows_of(params, n + v * LANES, params[N] - 1), panel + v * LANES * 4
            for b in range(0, here, STEP):
                if here - b >= STEP:
                    whole(target + b * size, planes, block + b, 0)
                else:
                    partial(target + b * size, planes, block + b, here - b)

    return fill_panel


def panel_walker(form, depth: int, rows: int, record_bytes: int, of_tile):
    """A kernel that takes panels of NR rows of w against tiles of `rows` rows of packed x, a record
    of `record_bytes` for each block.

    Item i: tiles (i % G) T .. of panel i // G; T = params[TILES_PER_ITEM], G = ceil(tiles / T).
    `depth` inputs of a panel, a multiple of 32 STEP, are laid out at once. of_tile(result, record,
    panel, here, params, n, block, turn, turns) sets the sums [rows, NR] of `here` blocks, and asks
    (`ahead.asker`) for its share, `turn` of `turns`, of as many blocks from `block` on of the panel
    at row n.
    """
    fill_panel, write = panel_filler(form), writer(rows, NR, scales_last(form))
    chunk = depth // BLOCK
    panel_floats, tile_floats = chunk * block_bytes(form) // 4, rows * NR

    def kernel(params, start, stop):
        blocks, per_item = params[K] // BLOCK, params[TILES_PER_ITEM]
        tiles = (params[M] + rows - 1) // rows
        groups = (tiles + per_item - 1) // per_item
        panel, result = stack(panel_floats), f32(stack(tile_floats))
        for item in range(start, stop):
            n, first = item // groups * NR, item % groups * per_item
            end = min(first + per_item, tiles)
            for block in range(0, blocks, chunk):
                here = min(chunk, blocks - block)
                fill_panel(params, panel, n, block, here)
                next_block = block + chunk if block + chunk < blocks else 0
                next_n = n if next_block > 0 else n + NR
                for t in range(first, end):
                    record, turn = params[PACKED] + (t * blocks + block) * record_bytes, t - first
                    of_tile(
                        result, record, panel, here, params, next_n, next_block, turn, end - first
                    )
                    write(params, result, t, n, block)

    return kernel
