"""How stored weights become f32 vectors: one block of 32 inputs of a row at a time.

A weight is planes, and a `Form` says which and how elements lie in them (`boostr/quant`):

    w[n, k] = scale[n, g] * (number(code[n, k]) - zero - zeros[n, g]) + offset[n, g]

`codes.py` reads codes, `_group` the rest; GEMV, GEMM, embedding and dequantizing use them through
`block_vectors`. A row is known by the addresses of its planes. A block is VECTORS = 32 / LANES
vectors. Planes may lie at any address.

Each operation rounds once, in the order in which `ops/quant.py` has them: the kernels' fast-math
flags would let LLVM fuse or reorder them, and bits would differ from what the format means.

Plain scales of a whole row are left to the caller, who multiplies once at the end of the row.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.products.codes import (
    BLOCK,
    STORED,
    VECTORS,
    elements,
    fields,
    indices,
    lookup,
    numbers,
    table_of,
)
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import at, decode
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I64,
    LANES,
    constant,
    emit_fma,
    f32x,
    intrinsic,
    signature,
    splat,
)

_VF = ir.VectorType(F32, LANES)
_ONCE = ("nsz",)  # flags that leave an operation as it is written


def scales_last(form) -> bool:
    """Whether all that a row's weights have is one f32 scale, with which its products' sum can be
    multiplied."""
    plain = form.scale == "f32" and form.factor == 1.0 and form.offsets in ("", "zeros")
    return plain and not form.group and not form.super


def plane_names(form) -> tuple[str, ...]:
    """The planes of a form that are read for each block."""
    names = ["codes"]
    if len(fields(form)) == 2:
        names.append("high")
    if not form.is_float and not scales_last(form):
        names.append("scales")
    if form.super:
        names.append("supers")
    if form.offsets:
        names.append("zeros" if form.offsets == "zeros" else "offsets")
    if form.offsets == "u8":
        names.append("floors")
    return tuple(names)


def plane_rows(form, count: int):
    """`rows_at` of the planes of a form."""
    return rows_at([layout.PLANES[name] for name in plane_names(form)], count)


def rows_at(slots, count: int):
    """An intrinsic rows(params, first, last): where `count` rows from `first` on lie, in planes
    whose place is at these words of the parameters.

    Gives the addresses of all planes of one row, then those of the next. Rows past `last` are read
    as the last one.
    """
    result = types.UniTuple(types.int64, count * len(slots))

    def op(typingctx, params, first, last):
        def codegen(context, builder, sig, values):
            def word(i):
                return builder.load(at(builder, values[0], 8 * i, I64), align=8)

            places = [(word(slot), word(slot + 1)) for slot in slots]
            start, end = (context.cast(builder, v, t, types.int64)
                          for v, t in zip(values[1:], sig.args[1:], strict=True))  # fmt: skip
            out = []
            for i in range(count):
                row = builder.add(start, I64(i))
                row = builder.select(builder.icmp_signed("<", row, end), row, end)
                out += [builder.add(base, builder.mul(row, step)) for base, step in places]
            return context.make_tuple(builder, result, out)

        return signature(result, params, first, last), codegen

    return intrinsic(op)


def split_rows(builder, form, rows):
    """The tuple that `plane_rows` gave as a list of {plane: address}."""
    names = plane_names(form)
    words = [builder.extract_value(rows, i) for i in range(rows.type.count)]
    return [
        dict(zip(names, words[i : i + len(names)], strict=True))
        for i in range(0, len(words), len(names))
    ]


# ---------------------------------------------------------------- scales and offsets


class Group(NamedTuple):
    """What inputs that share a scale have in common, in all lanes; None for what there is not."""

    scale: ir.Value | None = None
    zero: ir.Value | None = None
    offset: ir.Value | None = None

    def of(self, builder, values):
        """scale * (values - zero) + offset."""
        if self.zero is not None:
            values = builder.fsub(values, self.zero, flags=_ONCE)
        if self.scale is not None:
            values = builder.fmul(values, self.scale, flags=_ONCE)
        if self.offset is not None:
            values = builder.fadd(values, self.offset, flags=_ONCE)
        return values


def number(builder, address, index, kind):
    """Element `index` of a plane of a kind of `STORED`, in all lanes."""
    llvm, size = STORED[kind]
    raw = builder.load(at(builder, address, builder.mul(index, I64(size)), llvm), align=1)
    return decode(builder, splat(builder, raw, LANES), kind)


def _groups(builder, form, row, block, count):
    """The `Group` of each vector of a block."""
    size = form.group or BLOCK
    found = {}
    for v in range(VECTORS):
        part = v * LANES // size  # of the block, where several groups lie in one
        if part not in found:
            found[part] = _group(builder, form, row, block, part, count)
    return [found[v * LANES // size] for v in range(VECTORS)]


def _group(builder, form, row, block, part, count):
    """Group `part` of a block, or that which the block is in."""
    if form.is_float:
        return Group()
    index = _group_index(builder, form, block, part, count)
    above = builder.udiv(block, I64(form.super // BLOCK)) if form.super else None
    scale = None
    if not scales_last(form):
        scale = number(builder, row["scales"], index, form.scale)
        if form.factor != 1.0:
            scale = builder.fmul(scale, constant(form.factor, _VF), flags=_ONCE)
        if form.super:
            scale = _times(builder, scale, row["supers"], above)
    if form.offsets == "zeros":
        return Group(scale, number(builder, row["zeros"], index, "i8"))
    if not form.offsets:
        return Group(scale)
    offset = number(builder, row["offsets"], index, form.offsets)
    if form.offsets == "u8":
        offset = _times(builder, offset, row["floors"], above)
    return Group(scale, None, offset)


def _times(builder, value, plane, index):
    return builder.fmul(value, number(builder, plane, index, "f32"), flags=_ONCE)


def _group_index(builder, form, block, part, count):
    """The number of a group in its row."""
    if not form.group:
        return I64(0)
    if form.group >= BLOCK:
        return builder.udiv(block, I64(form.group // BLOCK))
    within = I64(part)
    if count is not None:  # a group past the end of the row has no scale
        exists = builder.icmp_signed(">", count, I64(part * form.group))
        within = builder.select(exists, within, I64(0))
    return builder.add(builder.mul(block, I64(BLOCK // form.group)), within)


# ---------------------------------------------------------------- a block


def block_vectors(builder, form, row, block, count=None):
    """The VECTORS LLVM vectors of one block of a row, {plane: address}.

    Of a block of which `count` elements exist, what follows them is finite if its group is.
    """
    groups = _groups(builder, form, row, block, count)
    packed = sum(fields(form))
    if packed and 1 << packed <= LANES and form.group % BLOCK == 0:
        # all weights that the block can have, as often as there is room for, then lookups
        table = constant(table_of(form) * (LANES >> packed), _VF)
        if form.zero:
            table = builder.fsub(table, constant(float(form.zero), _VF))
        table = groups[0].of(builder, table)
        return [lookup(builder, table, part) for part in indices(builder, form, row, block)]
    codes = numbers(builder, form, row, block, count)
    return [group.of(builder, part) for part, group in zip(codes, groups, strict=True)]


def decoder(form):
    """Intrinsics (whole, partial) that decode block `block` of R rows.

    whole(rows, block) and partial(rows, block, count) give R * VECTORS vectors, row by row; `rows`
    is what `plane_rows` gives, `count` < 32 the number of elements that exist.
    """

    def make(rows, block, count=None):
        result = types.UniTuple(f32x, len(rows) // len(plane_names(form)) * VECTORS)

        def codegen(context, builder, sig, values):
            tail = values[2] if count is not None else None
            out = []
            for row in split_rows(builder, form, values[0]):
                out += block_vectors(builder, form, row, values[1], tail)
            return context.make_tuple(builder, result, out)

        tail_type = () if count is None else (types.int64,)
        return signature(result, rows, types.int64, *tail_type), codegen

    @intrinsic
    def whole(typingctx, rows, block):
        return make(rows, block)

    @intrinsic
    def partial(typingctx, rows, block, count):
        return make(rows, block, count)

    return whole, partial


def _columns(rows, block, count=None):
    """(signature, code) that loads a block of each row of x."""
    result = types.UniTuple(f32x, len(rows) * VECTORS)

    def codegen(context, builder, sig, values):
        tail = values[2] if count is not None else None
        offset = builder.mul(values[1], I64(BLOCK * 4))
        out = []
        for i in range(len(rows)):
            address = builder.add(builder.extract_value(values[0], i), offset)
            out += elements(builder, "f32", address, tail)
        return context.make_tuple(builder, result, out)

    tail_type = () if count is None else (types.int64,)
    return signature(result, rows, types.int64, *tail_type), codegen


@intrinsic
def load_block(typingctx, rows, block):
    """Block `block` of a tuple of f32 rows (int64 addresses): VECTORS vectors for each."""
    return _columns(rows, block)


@intrinsic
def load_block_n(typingctx, rows, block, count):
    """`load_block` of which only `count` elements exist."""
    return _columns(rows, block, count)


@intrinsic
def contract(typingctx, w, x, acc):
    """acc[r, m, s] += w[r, v] * x[m, v] for all v of which v % S = s: tuples of R V, M V, R M S."""
    rows, columns = len(w) // VECTORS, len(x) // VECTORS
    sums = len(acc) // (rows * columns)

    def codegen(context, builder, sig, values):
        ws, xs, out = (
            [builder.extract_value(value, i) for i in range(len(kind))]
            for value, kind in zip(values, (w, x, acc), strict=True)
        )
        for v in range(VECTORS):
            for r in range(rows):
                for m in range(columns):
                    i = (r * columns + m) * sums + v % sums
                    out[i] = emit_fma(builder, ws[r * VECTORS + v], xs[m * VECTORS + v], out[i])
        return context.make_tuple(builder, acc, out)

    return signature(acc, w, x, acc), codegen
