"""Sums over lanes and transcendental functions of the kernel language (see `simd.py`)."""

from llvmlite import ir
from numba import types

from boostr.backends.numpy.kernels.runtime.memory import load_n
from boostr.backends.numpy.kernels.runtime.simd import (
    F32,
    I32,
    LANES,
    Vec,
    absolute,
    bits_i32,
    call,
    constant,
    elementwise,
    emit_add,
    emit_fma,
    inline,
    intrinsic,
    maximum,
    picker,
    signature,
    suffix,
    vector,
)


def interleaved(builder, a, b, width):
    """Interleaves two vectors' lanes by blocks of `width`: (low halves of a and b, high halves)."""
    lanes = a.type.count
    low, high = [], []
    for block in range(lanes // width):
        source = 0 if block < lanes // width // 2 else lanes
        start = (block * 2 * width) % lanes
        low += [source + start + i for i in range(width)]
        high += [source + start + width + i for i in range(width)]
    kind = ir.VectorType(I32, lanes)
    return (
        builder.shuffle_vector(a, b, ir.Constant(kind, low)),
        builder.shuffle_vector(a, b, ir.Constant(kind, high)),
    )


def _fold(builder, vectors, combine):
    """The reductions of n = 2**k vectors, each over its lanes, as n scalars.

    Two vectors become one by combining their halves, so n vectors cost about n - 1 + log2(lanes)
    combinations and not n * log2(lanes).
    """
    lanes, count = vectors[0].type.count, len(vectors)
    if count > lanes or count & (count - 1):
        half = count // 2 if count > 1 else 1
        return _fold(builder, vectors[:half], combine) + _fold(builder, vectors[half:], combine)
    width = lanes // 2
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [combine(builder, *interleaved(builder, a, b, width)) for a, b in pairs]
        width //= 2
    one = vectors[0]
    while width >= 1:
        order = [i ^ width for i in range(lanes)]
        swapped = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, lanes), order))
        one = combine(builder, one, swapped)
        width //= 2
    return [builder.extract_element(one, I32(i * (lanes // count))) for i in range(count)]


def _reduction(combine, doc):
    def op(typingctx, a):
        many = isinstance(a, types.UniTuple)
        base = a.dtype if many else a
        if not isinstance(base, Vec):
            raise TypeError(f"a reduction wants vectors, got {a}")
        result = types.UniTuple(base.scalar, len(a)) if many else base.scalar

        def codegen(context, builder, sig, values):
            if not many:
                return _fold(builder, [values[0]], combine)[0]
            parts = [builder.extract_value(values[0], i) for i in range(len(a))]
            return context.make_tuple(builder, result, _fold(builder, parts, combine))

        return signature(result, a), codegen

    op.__doc__ = doc
    return intrinsic(op)


reduce_add = _reduction(
    emit_add, "the sum over the lanes of a vector, or of each vector of a tuple"
)
reduce_max = _reduction(picker(">"), "the largest lane of a vector, or of each vector of a tuple")
reduce_min = _reduction(picker("<"), "the smallest lane of a vector, or of each vector of a tuple")

# exp: Cephes' expf. ln 2 in two parts, the polynomial on |r| <= ln(2)/2 has error below 2**-24.
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP_POLY = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
             5.0000001201e-1)  # fmt: skip


def _power_of_two(builder, n, whole):
    """2**n for whole i32 lanes in the range of normal exponents."""
    biased = builder.shl(builder.add(n, constant(127, whole)), constant(23, whole))
    kind = ir.VectorType(F32, whole.count) if isinstance(whole, ir.VectorType) else F32
    return builder.bitcast(biased, kind)


def emit_exp(builder, x):
    """exp(x) = 2**n * e**r; n is applied in two halves so that results near the ends stay right."""
    kind = x.type
    whole = ir.VectorType(I32, kind.count) if isinstance(kind, ir.VectorType) else I32

    def f(value):
        return constant(value, kind)

    bounded = picker("<")(builder, picker(">")(builder, x, f(-104.0)), f(89.0))
    n = call(builder, f"llvm.rint.{suffix(kind)}", kind, [builder.fmul(bounded, f(_LOG2E))])
    r = emit_fma(builder, n, f(-_LN2_HIGH), bounded)
    r = emit_fma(builder, n, f(-_LN2_LOW), r)
    poly = f(_EXP_POLY[0])
    for coefficient in _EXP_POLY[1:]:
        poly = emit_fma(builder, poly, r, f(coefficient))
    value = builder.fadd(emit_fma(builder, builder.fmul(r, r), poly, r), f(1.0))
    exponent = builder.fptosi(n, whole)
    first = builder.ashr(exponent, constant(1, whole))
    # An explicit flag keeps the two products apart: reassociated, 2**64 * 2**64 would overflow.
    value = builder.fmul(value, _power_of_two(builder, first, whole), flags=("nsz",))
    second = _power_of_two(builder, builder.sub(exponent, first), whole)
    return builder.fmul(value, second, flags=("nsz",))


exp = elementwise(
    1, emit_exp, "e**a, error below 2 ulp; exp(-inf) = 0, exp(inf) = inf, NaN stays NaN"
)


@inline
def largest_bits(x, first, last):
    """The bits of the largest |x|: an order of numbers in which nan is above infinity."""
    top = vector(0)
    for d in range(first, last, LANES):
        top = maximum(top, bits_i32(absolute(load_n(x, d, last - d))))
    return reduce_max(top)
