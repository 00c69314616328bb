"""How stored weights become f32 vectors: one block of 32 inputs of a row at a time.

A weight is planes, and a `Form` says which and how elements lie in them (`boostr/quant`):

    w[n, k] = scale[n, g] * (code[n, k] - zero) + offset[n, g]

Codes are read by one function for each width (`_CODES`), scales and offsets by one more; GEMV,
GEMM, embedding and dequantizing use them through `block_vectors`. A row is known by the addresses
of its planes. A block is VECTORS = 32 / LANES vectors. Planes may lie at any address.

Scales of a whole row (group 0) are left to the caller, who multiplies once at the end of the row.
"""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import _count_mask, _read, decode
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    call,
    f32x,
    intrinsic,
    signature,
    splat,
)
from boostr.backends.numpy.runtime import jit

BLOCK = 32
VECTORS = BLOCK // LANES
STORED = {"f32": (F32, 4), "f16": (I16, 2), "bf16": (I16, 2), "i8": (I8, 1)}
_BYTES = {"f32": 128, "f16": 64, "bf16": 64, "c8": 32, "c4": 16, "c6": 16}  # codes of a block
_VF, _VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def block_bytes(form) -> int:
    """Bytes of the codes of one block, without what other planes have of it."""
    return _BYTES[form.codes]


def has_tail(form) -> bool:
    """Whether a row may end within a block: codes of less than a byte are packed in whole ones."""
    return form.codes not in ("c4", "c6")


def plane_names(form) -> tuple[str, ...]:
    """The planes of a form that are read for each block."""
    names = ["codes"]
    if form.codes == "c6":
        names.append("high")
    if form.group:
        names.append("scales")
    if form.super:
        names.append("supers")
    if form.offsets:
        names.append("offsets")
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


def constant(value, kind=_VI):
    """A vector whose elements all are `value`, or are those of a list."""
    return ir.Constant(kind, list(value) if isinstance(value, list) else [value] * kind.count)


def at(builder, address, offset, llvm):
    """The typed pointer to `offset` bytes (a number or a value) after an address."""
    offset = I64(offset) if isinstance(offset, int) else offset
    return builder.inttoptr(builder.add(address, offset), ir.PointerType(llvm))


# ---------------------------------------------------------------- codes


def _flat(builder, codes: str, address, count):
    """A block of elements that lie one after the other; `count` of them exist, None: all do."""
    stored = "i8" if codes == "c8" else codes
    element, size = STORED[stored]
    kind = ir.VectorType(element, LANES)
    vectors = []
    for v in range(VECTORS):
        where = at(builder, address, v * LANES * size, kind)
        mask = None
        if count is not None:
            mask = _count_mask(builder, builder.sub(count, I64(v * LANES)), LANES)
        vectors.append(decode(builder, _read(builder, where, kind, mask), stored))
    return vectors


def _wide(builder, address, offset, count, order=None):
    """`count` bytes as i32, not sign-extended; `order` picks them for the lanes."""
    kind = ir.VectorType(I8, count)
    raw = builder.load(at(builder, address, offset, kind), align=1)
    if order is not None:
        raw = builder.shuffle_vector(raw, raw, ir.Constant(ir.VectorType(I32, LANES), order))
    return builder.zext(raw, _VI)


def _nibbles(builder, address):
    """Byte i of a block's 16 has input i in its low nibble and input i + 16 in its high one.

    The vectors of the low nibbles still have the high ones above them.
    """
    parts = [_wide(builder, address, v * LANES, LANES) for v in range(VECTORS // 2)]
    return parts + [builder.lshr(part, constant(4)) for part in parts]


def _pairs(builder, address):
    """Byte i of a block's 8 has input i + 8 t in its bits 2 t and 2 t + 1; here at bits 4 and 5."""
    vectors = []
    for v in range(VECTORS):
        inputs = [v * LANES + lane for lane in range(LANES)]
        shifts = [2 * (i // 8) for i in inputs]
        wide = _wide(builder, address, 0, 8, [i % 8 for i in inputs])
        pair = builder.and_(builder.lshr(wide, constant(shifts)), constant(3))
        vectors.append(builder.shl(pair, constant(4)))
    return vectors


def _code_floats(builder, form, row, block, count):
    """A block's codes less `zero`, as f32; floats as they are."""
    address = builder.add(row["codes"], builder.mul(block, I64(block_bytes(form))))
    if has_tail(form):
        return _less_zero(builder, form, _flat(builder, form.codes, address, count))
    numbers = [builder.and_(part, constant(15)) for part in _nibbles(builder, address)]
    if form.codes == "c6":
        pairs = _pairs(builder, builder.add(row["high"], builder.mul(block, I64(8))))
        numbers = [builder.or_(*both) for both in zip(numbers, pairs, strict=True)]
    return _less_zero(builder, form, [builder.sitofp(part, _VF) for part in numbers])


def _less_zero(builder, form, vectors):
    if not form.zero:
        return vectors
    return [builder.fsub(vector, constant(float(form.zero), _VF)) for vector in vectors]


def _looked_up(builder, form, row, block, scale, offset):
    """Nibbles of one scale with AVX-512: all 16 weights that the block can have, then one lookup
    for 16 inputs, which reads only the low 4 bits."""
    table = constant([float(i - form.zero) for i in range(LANES)], _VF)
    table = scaled(builder, table, scale, offset)
    address = builder.add(row["codes"], builder.mul(block, I64(block_bytes(form))))
    name = "llvm.x86.avx512.permvar.sf.512"
    return [call(builder, name, _VF, [table, part]) for part in _nibbles(builder, address)]


# ---------------------------------------------------------------- scales and offsets


def number(builder, address, index, kind):
    """Element `index` of a plane of f32, f16 or i8, in all lanes."""
    llvm, size = STORED[kind]
    raw = builder.load(at(builder, address, builder.mul(index, I64(size)), llvm), align=1)
    return decode(builder, splat(builder, raw, LANES), kind)


def scaled(builder, values, scale, offset):
    """scale * values + offset; None for what there is not."""
    if offset is not None:
        return _fma(builder, values, scale, offset)
    return values if scale is None else builder.fmul(values, scale)


def _block_scales(builder, form, row, block):
    """(scale, offset) of each vector of a block, None for what there is not."""
    if not form.group:
        return [(None, None)] * VECTORS
    found = {}
    for v in range(VECTORS):
        part = v * LANES // form.group  # of the block, where several groups lie in one
        if part not in found:
            found[part] = _group_scale(builder, form, row, block, part)
    return [found[v * LANES // form.group] for v in range(VECTORS)]


def _group_scale(builder, form, row, block, part):
    """(scale, offset) of group `part` of a block, or of the group that the block is in."""
    if form.group < BLOCK:
        index = builder.add(builder.mul(block, I64(BLOCK // form.group)), I64(part))
    else:
        index = builder.udiv(block, I64(form.group // BLOCK))
    scale = number(builder, row["scales"], index, form.scale)
    if form.super:
        above = builder.udiv(block, I64(form.super // BLOCK))
        scale = builder.fmul(scale, number(builder, row["supers"], above, "f32"))
    return scale, number(builder, row["offsets"], index, "f16") if form.offsets else None


# ---------------------------------------------------------------- a block


def block_vectors(builder, form, row, block, count=None):
    """The VECTORS LLVM vectors of one block of a row, {plane: address}."""
    scales = _block_scales(builder, form, row, block)
    if form.codes == "c4" and form.group >= BLOCK and jit.target().has("avx512f"):
        return _looked_up(builder, form, row, block, *scales[0])
    vectors = _code_floats(builder, form, row, block, count)
    return [scaled(builder, v, *pair) for v, pair in zip(vectors, scales, strict=True)]


def decoder(form):
    """Intrinsics (whole, partial) that decode block `block` of R rows.

    whole(rows, block) and partial(rows, block, count) give R * VECTORS vectors, row by row; `rows`
    is what `plane_rows` gives, `count` < 32 the number of elements that exist (zeros after them).
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
            out += _flat(builder, "f32", address, tail)
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
    """acc[r, m] += sum over v of w[r, v] * x[m, v], for tuples of R V, M V and R M vectors."""
    rows, columns = len(w) // VECTORS, len(x) // VECTORS

    def codegen(context, builder, sig, values):
        ws, xs, out = (
            [builder.extract_value(value, i) for i in range(len(kind))]
            for value, kind in zip(values, (w, x, acc), strict=True)
        )
        for v in range(VECTORS):
            for r in range(rows):
                for m in range(columns):
                    i = r * columns + m
                    out[i] = _fma(builder, ws[r * VECTORS + v], xs[m * VECTORS + v], out[i])
        return context.make_tuple(builder, acc, out)

    return signature(acc, w, x, acc), codegen


# ---------------------------------------------------------------- several blocks, then their scales

SPAN = 4  # blocks


def has_spans(form) -> bool:
    """Whether `span_contractor` has the form."""
    plain = form.codes == "c8" and not form.super and not form.offsets
    return plain and (form.group in (32, 64) or (form.group > 0 and form.group % 128 == 0))


def span_contractor(form):
    """An intrinsic op(w, x, block, acc): acc[r, m] += the products of SPAN blocks from `block`, a
    multiple of SPAN, on.

    `w` is what `plane_rows` gives, `x` a tuple of f32 rows. Sums are scaled instead of weights, and
    the scales of a span are read at once: a third less to do than block by block for one row of x.
    """

    def op(typingctx, w, x, block, acc):
        columns = len(x)

        def codegen(context, builder, sig, values):
            out = [builder.extract_value(values[3], i) for i in range(len(acc))]
            offset = builder.mul(values[2], I64(BLOCK * 4))
            xs = [builder.add(builder.extract_value(values[1], m), offset) for m in range(columns)]
            blocks = range(0, SPAN * BLOCK * 4, BLOCK * 4)
            xs = [[_flat(builder, "f32", builder.add(a, I64(at_)), None) for at_ in blocks]
                  for a in xs]  # fmt: skip
            for r, row in enumerate(split_rows(builder, form, values[0])):
                scales = _span_scales(builder, form, row, values[2])
                codes = [
                    _code_floats(builder, form, row, builder.add(values[2], I64(b)), None)
                    for b in range(SPAN)
                ]
                for m in range(columns):
                    i = r * columns + m
                    out[i] = _span_sum(builder, codes, xs[m], scales, out[i])
            return context.make_tuple(builder, acc, out)

        return signature(acc, w, x, types.int64, acc), codegen

    return intrinsic(op)


def _span_sum(builder, codes, x, scales, total):
    """total + the sum over groups of scale * (sum of codes * x)."""
    blocks = SPAN // len(scales)
    for g, scale in enumerate(scales):
        part = None
        for b in range(g * blocks, (g + 1) * blocks):
            for w, v in zip(codes[b], x[b], strict=True):
                part = builder.fmul(w, v) if part is None else _fma(builder, w, v, part)
        total = _fma(builder, part, scale, total)
    return total


def _span_scales(builder, form, row, block):
    """The scales of the groups of a span, each in all lanes."""
    groups = max(SPAN * BLOCK // form.group, 1)
    index = builder.udiv(block, I64(form.group // BLOCK))
    if groups == 1:
        return [number(builder, row["scales"], index, form.scale)]
    llvm, size = STORED[form.scale]
    where = at(builder, row["scales"], builder.mul(index, I64(size)), ir.VectorType(llvm, groups))
    values = decode(builder, builder.load(where, align=1), form.scale)
    return [builder.shuffle_vector(values, values, constant(g)) for g in range(groups)]


def _fma(builder, a, b, c):
    return call(builder, f"llvm.fma.v{LANES}f32", _VF, [a, b, c])
