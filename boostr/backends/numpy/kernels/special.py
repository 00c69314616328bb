"""tanh, erf, log and sigmoid of f32 vectors, in the kernel language (see `simd.py`)."""

from boostr.backends.numpy.kernels.simd import (
    absolute,
    bits_f32,
    bits_i32,
    fma,
    inline,
    less,
    maximum,
    minimum,
    select,
    to_f32,
)
from boostr.backends.numpy.kernels.vmath import exp


@inline
def sigmoid(x):
    """1 / (1 + e**-x), below 3 ulp; exp(-x) = inf gives 0."""
    return 1.0 / (1.0 + exp(0.0 - x))


@inline
def tanh(x):
    """tanh, below 3 ulp: Cephes' tanhf, a polynomial up to 0.625 and 1 - 2 / (e**2x + 1) above."""
    size = absolute(x)
    large = 1.0 - 2.0 / (exp(size + size) + 1.0)
    large = select(less(x, 0.0), 0.0 - large, large)
    z = x * x
    p = fma(z, -5.70498872745e-3, 2.06390887954e-2)
    p = fma(p, z, -5.37397155531e-2)
    p = fma(p, z, 1.33314422036e-1)
    p = fma(p, z, -3.33332819422e-1)
    return select(less(size, 0.625), fma(p * z, x, x), large)


@inline
def erf(x):
    """erf as x · P(x²) / Q(x²), x clipped to ±4 where it is ±1: Eigen's and XLA's fit, few ulp."""
    x = maximum(minimum(x, 4.0), -4.0)
    z = x * x
    p = fma(z, -2.72614225801306e-10, 2.77068142495902e-08)
    p = fma(p, z, -2.10102402082508e-06)
    p = fma(p, z, -5.69250639462346e-05)
    p = fma(p, z, -7.34990630326855e-04)
    p = fma(p, z, -2.95459980854025e-03)
    p = fma(p, z, -1.60960333262415e-02)
    q = fma(z, -1.45660718464996e-05, -2.13374055278905e-04)
    q = fma(q, z, -1.68282697438203e-03)
    q = fma(q, z, -7.37332916720468e-03)
    q = fma(q, z, -1.42647390514189e-02)
    return x * p / q


@inline
def log(x):
    """Natural logarithm of normal positive numbers, below 2 ulp: Cephes' logf."""
    bits = bits_i32(x)
    exponent = to_f32((bits >> 23) - 126)
    m = bits_f32((bits & 0x007FFFFF) | 0x3F000000)
    low = less(m, 0.707106781186547524)
    exponent = select(low, exponent - 1.0, exponent)
    m = select(low, m + m, m) - 1.0
    z = m * m
    p = fma(m, 7.0376836292e-2, -1.1514610310e-1)
    p = fma(p, m, 1.1676998740e-1)
    p = fma(p, m, -1.2420140846e-1)
    p = fma(p, m, 1.4249322787e-1)
    p = fma(p, m, -1.6668057665e-1)
    p = fma(p, m, 2.0000714765e-1)
    p = fma(p, m, -2.4999993993e-1)
    p = fma(p, m, 3.3333331174e-1)
    y = fma(exponent, -2.12194440e-4, p * m * z)
    y = fma(z, -0.5, y)
    return fma(exponent, 0.693359375, m + y)
