"""How close is close: a bound from the arithmetic, not from what happened to pass.

    |actual - reference| <= c * eps(dtype) * (sqrt(R) * scale + |reference|)

R is the reduction length (`reduce`), `scale` the rms size of one summed term, so sqrt(R) * scale
is the size of a sum of R terms of random sign. Adding them in one f32 accumulator rounds partial
sums of size sqrt(k) * scale, each by about 0.2 eps rms: together 0.15 R * scale * eps, that is
0.15 sqrt(R) in units of eps * sqrt(R) * scale; over n lanes it is sqrt(n) times less. The worst
of 20000 sums was 9, 33, 44, 92 units for R = 64, 576, 1536, 4096 in one accumulator, 4, 6, 7, 11
over 16 lanes. So c = 16 holds for every kernel that sums over 16 lanes or more (SIMD, BLAS, a
workgroup) up to R = 8000 or so; one that adds up to R terms in a single accumulator states c =
2 sqrt(R) and this reason. 16-bit results are accumulated in f32: the bound only has to admit the
rounding of the result (0.5 eps |reference|) and of a few intermediates: c = 2. A larger c needs a
written reason at the call.
"""

import numpy as np

# A product of x in digits and integer codes (docs/numerics.md): an element of x is rounded to
# 2**-15 of the largest of its 32 neighbours with two digits, of 2.1 rms on average, to 2**-20 with
# three. That is 2.1 * 2**-15 / sqrt(12) of a term rms, 155 and 5 in units of eps * scale; the worst
# of many sums is 4.5 times as far off, and twice that is a bound; with three, 16 for the sum too.
TWO_DIGITS, THREE_DIGITS = 1400.0, 60.0
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
DEFAULT_C = {"float64": 16.0, "float32": 16.0, "float16": 2.0, "bfloat16": 2.0}


def dtype_name(dtype) -> str:
    """A name such as float32, from a name, a numpy dtype or scalar type, or our own dtype."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    name = name or getattr(dtype, "__name__", None) or np.dtype(dtype).name
    if name not in EPS:
        raise ValueError(f"no tolerance for dtype {name!r}; known: {', '.join(EPS)}")
    return name


def rms(x) -> float:
    """Root mean square, for `scale`: rms(x) * rms(w) is one term of a linear."""
    x = np.asarray(x).astype(np.float64)
    return float(np.sqrt(np.mean(x * x))) if x.size else 0.0


def term_rms(x, w):
    """The same for each result of x [..., K] wᵀ, w [N, K], where rows differ in size: [..., N]."""
    x, w = (np.asarray(a).astype(np.float64) for a in (x, w))
    return np.sqrt((x * x) @ (w * w).T / x.shape[-1])


def bound(reference, *, dtype, reduce, scale=1.0, c=None):
    """The allowed |actual - reference|, elementwise."""
    name = dtype_name(dtype)
    c = DEFAULT_C[name] if c is None else c
    size = np.abs(np.where(np.isfinite(reference), reference, 0.0))
    return c * EPS[name] * (np.sqrt(reduce) * np.asarray(scale, np.float64) + size)


def assert_close(actual, reference, *, dtype, reduce, scale=1.0, c=None, err_msg=""):
    """Raise AssertionError unless every element is within `bound`; inf and nan must match exactly.

    dtype: in which the values under test were computed and stored; reduce: R; scale: number, or an
    array that broadcasts against the reference; c: see the module.
    """
    actual = np.asarray(actual).astype(np.float64)
    reference = np.asarray(reference).astype(np.float64)
    if actual.shape != reference.shape:
        raise AssertionError(f"{err_msg} shape {actual.shape}, expected {reference.shape}")
    if not actual.size:
        return
    allowed = np.broadcast_to(
        bound(reference, dtype=dtype, reduce=reduce, scale=scale, c=c), reference.shape
    )
    finite = np.isfinite(reference) & np.isfinite(actual)
    same = np.equal(actual, reference) | (np.isnan(actual) & np.isnan(reference))
    error = np.where(same, 0.0, np.inf)
    np.subtract(actual, reference, out=error, where=finite)
    error = np.abs(error)
    ratio = error / np.maximum(allowed, np.finfo(np.float64).tiny)
    bad = ~(error <= allowed)
    if not bad.any():
        return
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    index = tuple(int(i) for i in at)
    raise AssertionError(
        f"{err_msg} {int(bad.sum())} of {bad.size} elements outside the tolerance"
        f" ({dtype_name(dtype)}, R = {reduce}); worst at {index}: got {actual[at]:.9g},"
        f" expected {reference[at]:.9g}, off by {error[at]:.3g}, allowed {allowed[at]:.3g}"
        f" ({ratio[at]:.3g} x; c would have to be"
        f" {ratio[at] * (DEFAULT_C[dtype_name(dtype)] if c is None else c):.3g})"
    )
