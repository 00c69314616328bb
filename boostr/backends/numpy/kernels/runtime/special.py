"""tanh, erf, log, sigmoid, activations and their derivatives on f32 vectors, in the kernel language
(see `simd.py`).

Written as LLVM instructions and not in the kernel language: numba takes half a millisecond for each
operation that it has to type.
"""

from llvmlite import ir

from boostr.backends.numpy.kernels.runtime.simd import (
    I32,
    call,
    constant,
    elementwise,
    emit_fma,
    picker,
    suffix,
)
from boostr.backends.numpy.kernels.runtime.vmath import emit_exp


def _polynomial(builder, x, coefficients):
    """Horner's rule, the highest power first."""
    total = constant(coefficients[0], x.type)
    for c in coefficients[1:]:
        total = emit_fma(builder, total, x, constant(c, x.type))
    return total


def _sigmoid(builder, x):
    one = constant(1.0, x.type)
    e = emit_exp(builder, builder.fsub(constant(0.0, x.type), x))
    return builder.fdiv(one, builder.fadd(one, e))


# Cephes' tanhf: a polynomial up to 0.625, 1 - 2 / (e**2|x| + 1) with x's sign above.
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
         -3.33332819422e-1)  # fmt: skip


def _tanh(builder, x):
    kind = x.type
    one = constant(1.0, kind)
    size = call(builder, f"llvm.fabs.{suffix(kind)}", kind, [x])
    e = emit_exp(builder, builder.fadd(size, size))
    large = builder.fsub(one, builder.fdiv(constant(2.0, kind), builder.fadd(e, one)))
    large = call(builder, f"llvm.copysign.{suffix(kind)}", kind, [large, x])
    z = builder.fmul(x, x)
    p = builder.fmul(_polynomial(builder, z, _TANH), z)
    small = builder.fcmp_ordered("<", size, constant(0.625, kind))
    return builder.select(small, emit_fma(builder, p, x, x), large)


_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06,
          -5.69250639462346e-05, -7.34990630326855e-04, -2.95459980854025e-03,
          -1.60960333262415e-02)  # fmt: skip
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03,
          -7.37332916720468e-03, -1.42647390514189e-02)  # fmt: skip


def _erf(builder, x):
    """x · P(x²) / Q(x²), x clipped to ±4 where it is ±1: the fit of Eigen and XLA."""
    x = picker(">")(builder, picker("<")(builder, x, constant(4.0, x.type)), constant(-4.0, x.type))
    z = builder.fmul(x, x)
    p = builder.fmul(x, _polynomial(builder, z, _ERF_P))
    return builder.fdiv(p, _polynomial(builder, z, _ERF_Q))


# Cephes' logf: x = 2**e m with m in [sqrt(1/2), sqrt(2)), ln 2 in two parts.
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip


def _log(builder, x):
    kind = x.type
    whole = ir.VectorType(I32, kind.count) if isinstance(kind, ir.VectorType) else I32
    bits = builder.bitcast(x, whole)
    exponent = builder.sub(builder.ashr(bits, constant(23, whole)), constant(126, whole))
    fraction = builder.and_(bits, constant(0x007FFFFF, whole))
    m = builder.bitcast(builder.or_(fraction, constant(0x3F000000, whole)), kind)
    e = builder.sitofp(exponent, kind)
    low = builder.fcmp_ordered("<", m, constant(0.707106781186547524, kind))
    e = builder.select(low, builder.fsub(e, constant(1.0, kind)), e)
    m = builder.fsub(builder.select(low, builder.fadd(m, m), m), constant(1.0, kind))
    z = builder.fmul(m, m)
    y = builder.fmul(builder.fmul(_polynomial(builder, m, _LOG), m), z)
    y = emit_fma(builder, e, constant(-2.12194440e-4, kind), y)
    y = emit_fma(builder, z, constant(-0.5, kind), y)
    y = emit_fma(builder, e, constant(0.693359375, kind), builder.fadd(m, y))
    finite = builder.fcmp_ordered("<", x, constant(float("inf"), kind))
    return builder.select(finite, y, x)


def _gelu(builder, x):
    half = builder.fmul(x, constant(0.5, x.type))
    return emit_fma(builder, half, _erf(builder, builder.fmul(x, constant(0.5**0.5, x.type))), half)


def _gelu_tanh(builder, x):
    cube = builder.fmul(builder.fmul(x, x), x)
    inner = emit_fma(builder, cube, constant(0.044715, x.type), x)
    scaled = builder.fmul(inner, constant(1.5957691216057308, x.type))  # 2 sqrt(2 / pi)
    return builder.fmul(x, _sigmoid(builder, scaled))


def _silu(builder, x):
    return builder.fmul(x, _sigmoid(builder, x))


def _silu_slope(builder, x):
    """s + x s (1 - s), s = sigmoid(x)."""
    s, one = _sigmoid(builder, x), constant(1.0, x.type)
    return builder.fmul(s, emit_fma(builder, x, builder.fsub(one, s), one))


def _gelu_slope(builder, x):
    """Φ(x) + x φ(x), φ the density of the normal distribution."""
    half = constant(0.5, x.type)
    phi = emit_fma(builder, half, _erf(builder, builder.fmul(x, constant(0.5**0.5, x.type))), half)
    e = emit_exp(builder, builder.fmul(builder.fmul(x, x), constant(-0.5, x.type)))
    return emit_fma(builder, builder.fmul(x, constant(0.3989422804014327, x.type)), e, phi)


def _gelu_tanh_slope(builder, x):
    """s + x s (1 - s) z'(x), where gelu_tanh is x s, s = sigmoid(z(x))."""
    one, square = constant(1.0, x.type), builder.fmul(x, x)
    twice = constant(1.5957691216057308, x.type)  # 2 sqrt(2 / pi)
    cubic = emit_fma(builder, square, constant(0.044715, x.type), one)
    s = _sigmoid(builder, builder.fmul(builder.fmul(x, twice), cubic))
    rise = builder.fmul(emit_fma(builder, square, constant(3 * 0.044715, x.type), one), twice)
    tail = builder.fmul(builder.fmul(x, rise), builder.fsub(one, s))
    return builder.fmul(s, builder.fadd(tail, one))


sigmoid = elementwise(1, _sigmoid, "1 / (1 + e**-a), below 3 ulp")
tanh = elementwise(1, _tanh, "tanh, below 3 ulp")
log = elementwise(
    1, _log, "natural logarithm of normal positive numbers, below 2 ulp; of inf\nand NaN itself"
)
silu = elementwise(1, _silu, "a sigmoid(a)")
gelu = elementwise(1, _gelu, "a/2 (1 + erf(a / sqrt(2)))")
gelu_tanh = elementwise(1, _gelu_tanh, "gelu's tanh form, as a sigmoid(2 sqrt(2/pi) (a + ...))")
silu_slope = elementwise(1, _silu_slope, "the derivative of silu")
gelu_slope = elementwise(1, _gelu_slope, "the derivative of gelu")
gelu_tanh_slope = elementwise(1, _gelu_tanh_slope, "the derivative of gelu's tanh form")

__all__ = [
    "gelu", "gelu_slope", "gelu_tanh", "gelu_tanh_slope", "log", "sigmoid", "silu", "silu_slope",
    "tanh",
]  # fmt: skip
