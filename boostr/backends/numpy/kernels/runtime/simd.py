"""Vectors for numba: the small language in which the CPU kernels are written.

Values
    A vector is an LLVM vector of LANES elements (16 with AVX-512, 8 with AVX2, 4 else). An
    operation also takes scalars, which are spread over the lanes, and tuples, on which it works
    element by element and spreads what is no tuple, as numpy broadcasts. So `acc = fma(w, x, acc)`
    with `w` and `acc` tuples of four vectors is the inner loop of a product of four rows, and costs
    four instructions. All shapes are known when the kernel is compiled; tuples cost nothing.

`memory.py` loads and stores them, `vmath.py` adds them up and has exp.
Only the compile step imports this module; `jit.target()` says what it compiles for.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import extending, njit, types
from numba.core.typing import templates

from boostr.backends.numpy.runtime import jit

# numba's decorators, untyped: a type checker takes their results for the plain functions below them
intrinsic: Any = extending.intrinsic
lower_builtin: Any = extending.lower_builtin
infer_global: Any = templates.infer_global
register_model: Any = extending.register_model
inline: Any = njit(inline="always")  # for helpers of kernels
models, signature, AbstractTemplate = (
    extending.models,
    templates.signature,
    templates.AbstractTemplate,
)

LANES = jit.target().lanes
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F16 = ir.FloatType(), ir.HalfType()


class Vec(types.Type):
    """LANES elements (or `lanes`) of a numba scalar type; types.boolean makes a mask."""

    def __init__(self, scalar: types.Type, lanes: int = LANES):
        self.scalar, self.lanes = scalar, lanes
        super().__init__(name=f"Vec({scalar}, {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_SCALARS[self.scalar], self.lanes)


_SCALARS = {types.float32: F32, types.int32: I32, types.int8: I8, types.uint8: I8,
            types.int16: I16, types.uint16: I16, types.boolean: I1}  # fmt: skip
f32x, i32x, mask_t = Vec(types.float32), Vec(types.int32), Vec(types.boolean)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


# ---------------------------------------------------------------- constants and broadcasting


def splat(builder, value, lanes):
    """The LLVM vector with `lanes` copies of a scalar LLVM value."""
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def constant(value, kind):
    """`value` as this type; a vector's elements all are it, or are those of a list."""
    if not isinstance(kind, ir.VectorType):
        return ir.Constant(kind, value)
    return ir.Constant(kind, list(value) if isinstance(value, list) else [value] * kind.count)


def call(builder, name, result, args):
    """A call of the LLVM intrinsic `name`, declared on first use."""
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        function = ir.Function(module, kind, name)
    return builder.call(function, args)


def suffix(type_) -> str:
    """The type part of an intrinsic's name: v16f32, i32, ..."""
    if isinstance(type_, ir.VectorType):
        return f"v{type_.count}{suffix(type_.element)}"
    return {F32: "f32", F16: "f16"}.get(type_) or f"i{type_.width}"


def _element(args) -> types.Type | None:
    """The vector type among the arguments (looking into tuples), None if all are scalars."""
    for arg in args:
        inner = arg.dtype if isinstance(arg, types.UniTuple) else arg
        if isinstance(inner, Vec):
            return inner
    return None


def _coerce(context, builder, value, from_type, to_type):
    """`value` as the vector or scalar type `to_type`."""
    if from_type == to_type:
        return value
    if isinstance(to_type, Vec) and not isinstance(from_type, Vec):
        scalar = context.cast(builder, value, from_type, to_type.scalar)
        return splat(builder, scalar, to_type.lanes)
    if isinstance(to_type, Vec) or isinstance(from_type, Vec):
        raise TypeError(f"{from_type} does not fit {to_type}")
    return context.cast(builder, value, from_type, to_type)


def _typed(args, result):
    """(type of the arguments, type of the result) of an elementwise operation."""
    vector = _element(args)
    base = vector or types.float32
    out = result(base) if result else base
    sizes = {len(arg) for arg in args if isinstance(arg, types.UniTuple)}
    if len(sizes) > 1:
        raise TypeError(f"tuples of different lengths {sorted(sizes)}")
    return base, (types.UniTuple(out, sizes.pop()) if sizes else out)


def _lower(context, builder, sig, values, base, emit):
    """Code of an elementwise operation: `emit(builder, *vectors)` for each tuple element."""

    def at(index):
        picked = []
        for value, kind in zip(values, sig.args, strict=True):
            is_tuple = isinstance(kind, types.UniTuple)
            one = builder.extract_value(value, index) if is_tuple else value
            picked.append(_coerce(context, builder, one, kind.dtype if is_tuple else kind, base))
        return emit(builder, *picked)

    result = sig.return_type
    if not isinstance(result, types.UniTuple):
        return at(0)
    return context.make_tuple(builder, result, [at(index) for index in range(len(result))])


def elementwise(arity: int, emit, doc: str, result=None):
    """An intrinsic over vectors, scalars and tuples of both. `emit(builder, *llvm values)`."""

    def make(args):
        base, returned = _typed(args, result)

        def codegen(context, builder, sig, values):
            return _lower(context, builder, sig, values, base, emit)

        return signature(returned, *args), codegen

    def unary(typingctx, a):
        return make((a,))

    def binary(typingctx, a, b):
        return make((a, b))

    def ternary(typingctx, a, b, c):
        return make((a, b, c))

    op = (unary, binary, ternary)[arity - 1]
    op.__doc__ = doc
    return intrinsic(op)


def _operator(symbol, float_op, int_op):
    """Gives vectors (not tuples) the Python operator `symbol`."""

    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            if any(isinstance(arg, Vec) for arg in args) and all(
                isinstance(arg, (Vec, types.Number)) for arg in args
            ):
                return signature(_element(args), *args)
            return None

    infer_global(symbol)(Typing)

    def lower(context, builder, sig, values):
        def emit(builder, a, b):
            return getattr(builder, float_op if _is_float(a) else int_op)(a, b)

        return _lower(context, builder, sig, values, sig.return_type, emit)

    for left, right in ((Vec, Vec), (Vec, types.Number), (types.Number, Vec)):
        lower_builtin(symbol, left, right)(lower)


def _is_float(value) -> bool:
    kind = value.type
    return (kind.element if isinstance(kind, ir.VectorType) else kind) == F32


for _name, _float_op, _int_op in (
    ("add", "fadd", "add"),
    ("sub", "fsub", "sub"),
    ("mul", "fmul", "mul"),
    ("truediv", "fdiv", "sdiv"),
    ("and_", "and_", "and_"),
    ("or_", "or_", "or_"),
    ("xor", "xor", "xor"),
    ("lshift", "shl", "shl"),
    ("rshift", "ashr", "ashr"),
):
    _operator(getattr(operator, _name), _float_op, _int_op)
    _operator(getattr(operator, f"i{_name.rstrip('_')}"), _float_op, _int_op)


# ---------------------------------------------------------------- arithmetic


def _unary(name):
    return lambda builder, a: call(builder, f"llvm.{name}.{suffix(a.type)}", a.type, [a])


def _either(float_op, int_op):
    return lambda builder, a, b: getattr(builder, float_op if _is_float(a) else int_op)(a, b)


def picker(order):
    """max or min that keep a NaN in the first argument; one instruction on x86."""

    def emit(builder, a, b):
        compare = builder.fcmp_ordered if _is_float(a) else builder.icmp_signed
        return builder.select(compare(order, b, a), b, a)

    return emit


def emit_fma(builder, a, b, c):
    if not _is_float(a):
        return builder.add(builder.mul(a, b), c)
    return call(builder, f"llvm.fma.{suffix(a.type)}", a.type, [a, b, c])


emit_add = _either("fadd", "add")
add = elementwise(2, emit_add, "a + b")
sub = elementwise(2, _either("fsub", "sub"), "a - b")
mul = elementwise(2, _either("fmul", "mul"), "a * b")
divide = elementwise(
    2,
    lambda builder, a, b: builder.fdiv(a, b, flags=("nsz",)),
    "a / b rounded once; the operator / may become a product with 1 / b",
)
fma = elementwise(3, emit_fma, "a * b + c, rounded once")
maximum = elementwise(2, picker(">"), "the larger of a and b")
minimum = elementwise(2, picker("<"), "the smaller of a and b")
absolute = elementwise(1, _unary("fabs"), "|a|")
sqrt = elementwise(1, _unary("sqrt"), "square root")
rint = elementwise(1, _unary("rint"), "to the nearest whole number, halves to even; still f32")


def _as(scalar):
    return lambda base: Vec(scalar, base.lanes) if isinstance(base, Vec) else scalar


def _retype(builder, value, scalar):
    """The LLVM type of `value` with another element type."""
    if isinstance(value.type, ir.VectorType):
        return ir.VectorType(scalar, value.type.count)
    return scalar


to_i32 = elementwise(1, lambda b, a: b.fptosi(a, _retype(b, a, I32)), "f32 -> i32, towards zero",
                     _as(types.int32))  # fmt: skip
to_f32 = elementwise(1, lambda b, a: b.sitofp(a, _retype(b, a, F32)), "i32 -> f32",
                     _as(types.float32))  # fmt: skip
bits_i32 = elementwise(1, lambda b, a: b.bitcast(a, _retype(b, a, I32)), "bits of f32 read as i32",
                       _as(types.int32))  # fmt: skip


def _compare(order):
    def emit(builder, a, b):
        compare = builder.fcmp_ordered if _is_float(a) else builder.icmp_signed
        return compare(order, a, b)

    return elementwise(
        2, emit, f"the mask a {order} b (false where one is NaN)", _as(types.boolean)
    )


less, greater, equal = _compare("<"), _compare(">"), _compare("==")


@intrinsic
def select(typingctx, mask, a, b):
    """a where the mask is set, else b; a or b may be scalars."""
    base = _element((a, b)) or f32x

    def codegen(context, builder, sig, values):
        yes = _coerce(context, builder, values[1], sig.args[1], base)
        no = _coerce(context, builder, values[2], sig.args[2], base)
        return builder.select(values[0], yes, no)

    return signature(base, mask, a, b), codegen


@intrinsic
def iota(typingctx):
    """The i32 vector 0, 1, ..., LANES - 1."""

    def codegen(context, builder, sig, values):
        return ir.Constant(i32x.llvm, list(range(LANES)))

    return signature(i32x), codegen


@intrinsic
def vector(typingctx, value):
    """A scalar spread over an f32 vector (f32 or Python float) or an i32 vector (int32)."""
    base = i32x if isinstance(value, types.Integer) else f32x

    def codegen(context, builder, sig, values):
        return _coerce(context, builder, values[0], sig.args[0], base)

    return signature(base, value), codegen


@intrinsic
def fill(typingctx, count, value):
    """A tuple of `count` (a constant) f32 vectors that all hold the scalar `value`."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(f32x, count.literal_value)

    def codegen(context, builder, sig, values):
        one = _coerce(context, builder, values[1], sig.args[1], f32x)
        return context.make_tuple(builder, result, [one] * len(result))

    return signature(result, count, value), codegen
