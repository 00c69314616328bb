"""tanh, erf, log, sigmoid, activations and their derivatives on f32 vectors, in the kernel language
(see `simd.py`).

Written as LLVM instructions and not in the kernel language: numba takes half a millisecond for each
operation that it has to type.
"""

from llvmlite import ir

from boostr.backends.numpy.kernels.runtime.simd import I32, _fma, _pick, call, elementwise, suffix
from boostr.backends.numpy.kernels.runtime.vmath import _const, _exp


def _polynomial(builder, x, coefficients):
    """Horner's rule, the highest power first."""
    total = _const(coefficients[0], x.type)
    for c in coefficients[1:]:
        total = _fma(builder, total, x, _const(c, x.type))
    return total


def _sigmoid(builder, x):
    one = _const(1.0, x.type)
    e = _exp(builder, builder.fsub(_const(0.0, x.type), x))
    return builder.fdiv(one, builder.fadd(one, e))


# Cephes' tanhf: a polynomial up to 0.625, 1 - 2 / (e**2|x| + 1) with x's sign above.
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
         -3.33332819422e-1)  # fmt: skip


def _tanh(builder, x):
    kind = x.type
    one = _const(1.0, kind)
    size = call(builder, f"llvm.fabs.{suffix(kind)}", kind, [x])
    e = _exp(builder, builder.fadd(size, size))
    large = builder.fsub(one, builder.fdiv(_const(2.0, kind), builder.fadd(e, one)))
    large = call(builder, f"llvm.copysign.{suffix(kind)}", kind, [large, x])
    z = builder.fmul(x, x)
    p = builder.fmul(_polynomial(builder, z, _TANH), z)
    small = builder.fcmp_ordered("<", size, _const(0.625, kind))
    return builder.select(small, _fma(builder, p, x, x), large)


_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06,
          -5.69250639462346e-05, -7.34990630326855e-04, -2.95459980854025e-03,
          -1.60960333262415e-02)  # fmt: skip
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03,
          -7.37332916720468e-03, -1.42647390514189e-02)  # fmt: skip


def _erf(builder, x):
    """x · P(x²) / Q(x²), x clipped to ±4 where it is ±1: the fit of Eigen and XLA."""
    x = _pick(">")(builder, _pick("<")(builder, x, _const(4.0, x.type)), _const(-4.0, x.type))
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
    exponent = builder.sub(builder.ashr(bits, _const(23, whole)), _const(126, whole))
    fraction = builder.and_(bits, _const(0x007FFFFF, whole))
    m = builder.bitcast(builder.or_(fraction, _const(0x3F000000, whole)), kind)
    e = builder.sitofp(exponent, kind)
    low = builder.fcmp_ordered("<", m, _const(0.707106781186547524, kind))
    e = builder.select(low, builder.fsub(e, _const(1.0, kind)), e)
    m = builder.fsub(builder.select(low, builder.fadd(m, m), m), _const(1.0, kind))
    z = builder.fmul(m, m)
    y = builder.fmul(builder.fmul(_polynomial(builder, m, _LOG), m), z)
    y = _fma(builder, e, _const(-2.12194440e-4, kind), y)
    y = _fma(builder, z, _const(-0.5, kind), y)
    y = _fma(builder, e, _const(0.693359375, kind), builder.fadd(m, y))
    finite = builder.fcmp_ordered("<", x, _const(float("inf"), kind))
    return builder.select(finite, y, x)


def _gelu(builder, x):
    half = builder.fmul(x, _const(0.5, x.type))
    return _fma(builder, half, _erf(builder, builder.fmul(x, _const(0.5**0.5, x.type))), half)


def _gelu_tanh(builder, x):
    cube = builder.fmul(builder.fmul(x, x), x)
    inner = _fma(builder, cube, _const(0.044715, x.type), x)
    scaled = builder.fmul(inner, _const(1.5957691216057308, x.type))  # 2 sqrt(2 / pi)
    return builder.fmul(x, _sigmoid(builder, scaled))


def _silu(builder, x):
    return builder.fmul(x, _sigmoid(builder, x))


def _silu_slope(builder, x):
    """s + x s (1 - s), s = sigmoid(x)."""
    s, one = _sigmoid(builder, x), _const(1.0, x.type)
    return builder.fmul(s, _fma(builder, x, builder.fsub(one, s), one))


def _gelu_slope(builder, x):
    """Φ(x) + x φ(x), φ the density of the normal distribution."""
    half = _const(0.5, x.type)
    phi = _fma(builder, half, _erf(builder, builder.fmul(x, _const(0.5**0.5, x.type))), half)
    e = _exp(builder, builder.fmul(builder.fmul(x, x), _const(-0.5, x.type)))
    return _fma(builder, builder.fmul(x, _const(0.3989422804014327, x.type)), e, phi)


def _gelu_tanh_slope(builder, x):
    """s + x s (1 - s) z'(x), where gelu_tanh is x s, s = sigmoid(z(x))."""
    one, square = _const(1.0, x.type), builder.fmul(x, x)
    twice = _const(1.5957691216057308, x.type)  # 2 sqrt(2 / pi)
    cubic = _fma(builder, square, _const(0.044715, x.type), one)
    s = _sigmoid(builder, builder.fmul(builder.fmul(x, twice), cubic))
    rise = builder.fmul(_fma(builder, square, _const(3 * 0.044715, x.type), one), twice)
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
