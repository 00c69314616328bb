"""Pointers, loads and stores of the kernel language (see `simd.py`).

A kernel gets addresses as int64. `f32(address)` (or f64, i64, i32, i8, u8, bf16, f16) makes a
pointer of it. `p[i]` reads or writes one element; `load(p, i)` reads LANES elements from element i
on, of any alignment, and gives them as f32 whatever their stored form (as i32 from an `i32`
pointer); `load_n(p, i, n)` reads only the first n <= LANES and puts zeros after them; `store` and
`store_n` write. `p + n` is the pointer n elements on. A tuple of pointers loads a tuple of vectors.
"""

import math
import operator

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.runtime.simd import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    AbstractTemplate,
    call,
    constant,
    f32x,
    i32x,
    infer_global,
    intrinsic,
    lower_builtin,
    models,
    register_model,
    signature,
    splat,
    suffix,
)
from boostr.backends.numpy.runtime import jit

# form: (stored LLVM type, bytes, the numba type of p[i])
_FORMS = {
    "f32": (F32, 4, types.float32), "f64": (ir.DoubleType(), 8, types.float64),
    "i64": (I64, 8, types.int64), "i32": (I32, 4, types.int32), "i8": (I8, 1, types.int32),
    "u8": (I8, 1, types.int32), "bf16": (I16, 2, types.float32), "f16": (I16, 2, types.float32),
}  # fmt: skip


class Pointer(types.Type):
    """An address of elements in one of the forms above; an i64 in LLVM."""

    def __init__(self, form: str):
        self.form = form
        self.llvm, self.size, self.item = _FORMS[form]
        super().__init__(name=f"Pointer({form})")

    @property
    def loaded(self):
        """The vector type that `load` gives."""
        return i32x if self.form == "i32" else f32x


@register_model(Pointer)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I64)


def _maker(form: str):
    kind = Pointer(form)

    def make(typingctx, address):
        def codegen(context, builder, sig, values):
            return context.cast(builder, values[0], sig.args[0], types.int64)

        return signature(kind, address), codegen

    make.__doc__ = f"The {form} pointer to an int64 address."
    return intrinsic(make)


f32, f64, i64, i32 = _maker("f32"), _maker("f64"), _maker("i64"), _maker("i32")
i8, u8, bf16, f16 = _maker("i8"), _maker("u8"), _maker("bf16"), _maker("f16")


def element_at(builder, base, index, size, llvm):
    """The typed LLVM pointer to element `index` of elements of `size` bytes."""
    index = builder.sext(index, I64) if index.type != I64 else index
    return builder.inttoptr(builder.add(base, builder.mul(index, I64(size))), ir.PointerType(llvm))


def at(builder, address, offset, llvm):
    """The typed pointer to `offset` bytes (a number or a value) after an address."""
    offset = I64(offset) if isinstance(offset, int) else offset
    return builder.inttoptr(builder.add(address, offset), ir.PointerType(llvm))


# ---------------------------------------------------------------- decoding


def _half_bits(builder, bits):
    """f16 bits in i32 lanes -> f32 without a conversion instruction: exponent moved by 2**112."""
    kind = ir.VectorType(F32, bits.type.count)

    def const(value):
        return ir.Constant(bits.type, [value] * bits.type.count)

    magnitude = builder.shl(builder.and_(bits, const(0x7FFF)), const(13))
    scaled = builder.fmul(
        builder.bitcast(magnitude, kind), ir.Constant(kind, [2.0**112] * kind.count)
    )
    special = builder.icmp_unsigned(">=", magnitude, const(0x7C00 << 13))
    infinite = builder.or_(magnitude, const(0x7F800000))
    magnitude = builder.select(special, infinite, builder.bitcast(scaled, bits.type))
    sign = builder.shl(builder.and_(bits, const(0x8000)), const(16))
    return builder.bitcast(builder.or_(magnitude, sign), kind)


def _e8m0(builder, raw):
    """2**(raw - 127): the exponent of an f32, but for the two ends, 2**-127 and NaN."""
    kind = ir.VectorType(I32, raw.type.count)
    bits = builder.zext(raw, kind)
    next_ = builder.and_(builder.add(bits, constant(1, kind)), constant(255, kind))
    end = builder.icmp_unsigned("<=", next_, constant(1, kind))
    exponent = builder.shl(bits, constant(23, kind))
    half = builder.or_(exponent, constant(1 << 22, kind))
    return builder.bitcast(builder.select(end, half, exponent), ir.VectorType(F32, kind.count))


def _e4m3(builder, raw):
    """An f16 of the same bits has an exponent that is 8 less; all ones are NaN, not a number."""
    kind = ir.VectorType(I16, raw.type.count)
    wide = builder.zext(raw, kind)
    size = builder.shl(builder.and_(wide, constant(0x7F, kind)), constant(7, kind))
    sign = builder.shl(builder.and_(wide, constant(0x80, kind)), constant(8, kind))
    value = decode(builder, builder.or_(size, sign), "f16")
    nan = builder.icmp_unsigned("==", size, constant(0x7F << 7, kind))
    value = builder.fmul(value, constant(256.0, value.type))
    return builder.select(nan, constant(math.nan, value.type), value)


def decode(builder, raw, form: str):
    """A vector of stored elements as f32 (i32 for form i32)."""
    if form in ("f32", "i32"):
        return raw
    wide = ir.VectorType(I32, raw.type.count)
    kind = ir.VectorType(F32, raw.type.count)
    if form == "bf16":
        shift = ir.Constant(wide, [16] * wide.count)
        return builder.bitcast(builder.shl(builder.zext(raw, wide), shift), kind)
    if form == "f16":
        if jit.target().converts_f16:
            return builder.fpext(builder.bitcast(raw, ir.VectorType(F16, wide.count)), kind)
        return _half_bits(builder, builder.zext(raw, wide))
    if form in _BYTE_FLOATS:
        return _BYTE_FLOATS[form](builder, raw)
    return builder.sitofp((builder.sext if form == "i8" else builder.zext)(raw, wide), kind)


_BYTE_FLOATS = {"e8m0": _e8m0, "e4m3": _e4m3}


def _decode_item(builder, raw, form: str):
    """One stored element as the scalar that p[i] gives."""
    if form in ("i8", "u8"):
        return (builder.sext if form == "i8" else builder.zext)(raw, I32)
    if form in ("bf16", "f16"):
        vector = decode(builder, splat(builder, raw, 4), form)
        return builder.extract_element(vector, I32(0))
    return raw


# ---------------------------------------------------------------- p[i], p + n


@infer_global(operator.getitem)
class _GetTyping(AbstractTemplate):
    def generic(self, args, kws):
        pointer, index = args
        if isinstance(pointer, Pointer) and isinstance(index, types.Integer):
            return signature(pointer.item, pointer, index)
        return None


@lower_builtin(operator.getitem, Pointer, types.Integer)
def _get(context, builder, sig, values):
    pointer = sig.args[0]
    where = element_at(builder, values[0], values[1], pointer.size, pointer.llvm)
    return _decode_item(builder, builder.load(where, align=1), pointer.form)


@infer_global(operator.setitem)
class _SetTyping(AbstractTemplate):
    def generic(self, args, kws):
        pointer, index, value = args
        if isinstance(pointer, Pointer) and isinstance(index, types.Integer):
            return signature(types.none, pointer, index, value)
        return None


@lower_builtin(operator.setitem, Pointer, types.Integer, types.Number)
def _set(context, builder, sig, values):
    pointer = sig.args[0]
    if pointer.form in ("bf16", "f16"):
        raise TypeError(f"{pointer.form} elements are read only")
    value = context.cast(builder, values[2], sig.args[2], pointer.item)
    if pointer.size == 1:
        value = builder.trunc(value, I8)
    where = element_at(builder, values[0], values[1], pointer.size, pointer.llvm)
    builder.store(value, where, align=1)
    return context.get_dummy_value()


@infer_global(operator.add)
class _AddTyping(AbstractTemplate):
    def generic(self, args, kws):
        if isinstance(args[0], Pointer) and isinstance(args[1], types.Integer):
            return signature(args[0], *args)
        return None


@lower_builtin(operator.add, Pointer, types.Integer)
def _add(context, builder, sig, values):
    count = context.cast(builder, values[1], sig.args[1], types.int64)
    return builder.add(values[0], builder.mul(count, I64(sig.args[0].size)))


# ---------------------------------------------------------------- vectors


def count_mask(builder, count, lanes):
    """The mask of the first `count` lanes."""
    count = builder.trunc(count, I32) if count.type != I32 else count
    numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, count, lanes))


def emit_read(builder, where, kind, mask=None):
    """An unaligned vector load, zeros where `mask` is given and not set."""
    if mask is None:
        return builder.load(where, align=1)
    zeros = ir.Constant(kind, [0] * kind.count)
    name = f"llvm.masked.load.{suffix(kind)}.p0"
    return call(builder, name, kind, [where, I32(1), mask, zeros])


def _load(pointers, index, count=None, lanes=LANES):
    """(signature, code) of load and load_n, with a pointer or a tuple of them."""
    many = isinstance(pointers, types.UniTuple)
    pointer = pointers.dtype if many else pointers
    if not isinstance(pointer, Pointer):
        raise TypeError(f"load wants a pointer, got {pointers}")
    result = types.UniTuple(pointer.loaded, len(pointers)) if many else pointer.loaded
    kind = ir.VectorType(pointer.llvm, lanes)

    def codegen(context, builder, sig, values):
        mask = count_mask(builder, values[2], lanes) if count is not None else None

        def one(base):
            where = element_at(builder, base, values[1], pointer.size, kind)
            return decode(builder, emit_read(builder, where, kind, mask), pointer.form)

        if not many:
            return one(values[0])
        bases = [builder.extract_value(values[0], i) for i in range(len(pointers))]
        return context.make_tuple(builder, result, [one(base) for base in bases])

    args = (pointers, index) if count is None else (pointers, index, count)
    return signature(result, *args), codegen


@intrinsic
def load(typingctx, pointer, index):
    """LANES elements from `index` on, as f32 (i32 from an i32 pointer)."""
    return _load(pointer, index)


@intrinsic
def load_n(typingctx, pointer, index, count):
    """The first `count` of LANES elements from `index` on, zeros in the other lanes."""
    return _load(pointer, index, count)


def _store(pointer, index, value, count=None):
    if not isinstance(pointer, Pointer) or pointer.size != 4:
        raise TypeError(f"store wants an f32 or i32 pointer, got {pointer}")

    def codegen(context, builder, sig, values):
        data = values[2]
        where = element_at(builder, values[0], values[1], 4, data.type)
        if count is None:
            builder.store(data, where, align=1)
        else:
            mask = count_mask(builder, values[3], data.type.count)
            name = f"llvm.masked.store.{suffix(data.type)}.p0"
            call(builder, name, ir.VoidType(), [data, where, I32(1), mask])
        return context.get_dummy_value()

    args = (pointer, index, value) if count is None else (pointer, index, value, count)
    return signature(types.none, *args), codegen


@intrinsic
def store(typingctx, pointer, index, value):
    """Writes a vector to elements index .. index + LANES - 1."""
    return _store(pointer, index, value)


@intrinsic
def store_n(typingctx, pointer, index, value, count):
    """Writes the first `count` lanes of a vector."""
    return _store(pointer, index, value, count)


@intrinsic
def prefetch(typingctx, address, size, level):
    """Asks for the cache lines of the `size` bytes (a constant) from an int64 address on.

    Level 3 is L1, 2 is L2. Any address is allowed, also one past the end of an array.
    """
    if not isinstance(size, types.IntegerLiteral) or not isinstance(level, types.IntegerLiteral):
        return None
    hint = I32(level.literal_value)

    def codegen(context, builder, sig, values):
        for line in range(0, size.literal_value, 64):
            where = builder.inttoptr(builder.add(values[0], I64(line)), ir.PointerType(I8))
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [where, I32(0), hint, I32(1)])
        return context.get_dummy_value()

    return signature(types.none, types.int64, size, level), codegen


@intrinsic
def float_param(typingctx, bits):
    """The f32 whose bits lie in the low half of an int64 parameter (`jit.float_bits`)."""

    def codegen(context, builder, sig, values):
        return builder.bitcast(builder.trunc(values[0], I32), F32)

    return signature(types.float32, bits), codegen


@intrinsic
def stack(typingctx, count):
    """The address of `count` (a constant) floats on the stack, 64-byte aligned, not set."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    size = count.literal_value

    def codegen(context, builder, sig, values):
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(F32, size))
            room.align = 64
        return builder.ptrtoint(room, I64)

    return signature(types.int64, count), codegen


@intrinsic
def put(typingctx, pointer, values):
    """Writes a tuple of f32 scalars or vectors one after the other."""

    def codegen(context, builder, sig, args):
        offset = 0
        for i in range(len(values)):
            value = builder.extract_value(args[1], i)
            where = element_at(builder, args[0], I64(offset), 4, value.type)
            builder.store(value, where, align=4)
            offset += getattr(value.type, "count", 1)
        return context.get_dummy_value()

    return signature(types.none, pointer, values), codegen


@intrinsic
def spread(typingctx, count, address, stride, first, last):
    """The addresses `address + stride * min(first + i, last)` for i < count (a constant), a tuple.

    Rows of a matrix, where those past the end are read as the last one.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(types.int64, count.literal_value)

    def codegen(context, builder, sig, values):
        _, base, step, start, end = values
        out = []
        for i in range(len(result)):
            index = builder.add(start, I64(i))
            index = builder.select(builder.icmp_signed("<", index, end), index, end)
            out.append(builder.add(base, builder.mul(index, step)))
        return context.make_tuple(builder, result, out)

    numbers = (types.int64,) * 4
    return signature(result, count, *numbers), codegen
