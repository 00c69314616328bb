"""Products on the CPU with every number of rows of x from 1 to 33: each has the kernel, the tiles
and the digits that the plan gives it."""

from itertools import product

import numpy as np
import packed
import pytest
from draws import normal
from packed import draw, fitted, product_c
from tolerance import assert_close, rms

from boostr import Tensor, backends, dispatch
from boostr.backends import Backend
from boostr.ops.linear import linear
from boostr.quant.scheme import QuantizedTensor

pytest.importorskip("numba")
from boostr.backends.numpy.products.linear import FEW

FLOATS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
FORMS = (*FLOATS, *(form for form in packed.FORMS if not form.startswith("int8-")))
COUNTS = range(1, 34)
FEW_COUNTS = 1, 2, 4, 8, 33  # without the low tiles, of which each is a kernel to compile
EVERY = ("f32", "bf16", "int8", "w8a8", "q4_0", "q4_k", "q6_k")
N = 37  # more than a panel of rows of w, and not a multiple of anything


@pytest.fixture
def numpy_backend():
    with dispatch.strict():
        yield backends.get("numpy")


def weight(backend: Backend, rng, form: str, K: int):
    """(a weight [N, K] of a form, its values in float64)."""
    if form in FLOATS:
        w = normal(rng, (N, K), FLOATS[form])
        return Tensor(w, backend=backend), w.astype(np.float64)
    return draw(backend, rng, form, N, K)


def seen(x: np.ndarray, w) -> np.ndarray:
    """x in float64 as the product sees it."""
    x = x.astype(np.float64)
    if not (isinstance(w, QuantizedTensor) and w.scheme.activations_int8):
        return x
    scale = (np.abs(x).max(1, keepdims=True) / 127).astype(np.float32)
    return np.rint(x.astype(np.float32) / scale).clip(-127, 127) * scale.astype(np.float64)


def allowed(w, rows: int, K: int) -> float | None:
    """`c` of `tolerance`: that of digits, or of sums in one accumulator for each element."""
    digits = None
    if isinstance(w, QuantizedTensor) and K % 32 == 0:
        digits = product_c(w.backend, w.scheme, rows)
    return max(digits or 0.0, 2 * K**0.5 if rows > FEW else 16.0)


@pytest.mark.parametrize("K", (100, 1184))
@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_rows(form, K, numpy_backend, rng):
    K = fitted(form, K)
    w, truth = weight(numpy_backend, rng, form, K)
    bias, scale = normal(rng, (N,)), rms(truth)
    for T in COUNTS if form in EVERY else FEW_COUNTS:
        x, residual = normal(rng, (T, K)), normal(rng, (T, N))
        more = [Tensor(part, backend=numpy_backend) for part in (bias, residual)]
        got = linear(Tensor(x, backend=numpy_backend), w, more[0], residual=more[1]).numpy()
        want = seen(x, w) @ truth.T + bias + residual
        size, c = rms(x) * scale + 1, allowed(w, T, K)
        assert_close(got, want, dtype="float32", reduce=K, scale=size, c=c, err_msg=f"{T} rows")


@pytest.mark.parametrize("form", EVERY)
def test_bits_of_a_row_among_many(form, numpy_backend, rng):
    """From 9 rows on the number of rows changes no bit of any."""
    K = fitted(form, 288)
    w, _ = weight(numpy_backend, rng, form, K)
    x = normal(rng, (48, K))
    want = linear(Tensor(x, backend=numpy_backend), w).numpy()
    for T in (*range(FEW + 1, 34), 47):
        got = linear(Tensor(x[-T:], backend=numpy_backend), w).numpy()
        np.testing.assert_array_equal(got, want[-T:], err_msg=f"{T} rows")


@pytest.mark.parametrize("form", ("int8", "w8a8", "q4_0"))
def test_what_is_no_number_is_seen(form, numpy_backend, rng):
    """A row of x with nan or an infinity in it has no finite product, and others have theirs."""
    w, _ = weight(numpy_backend, rng, form, 1184)
    for T, bad, at in product((1, 2, 4, 9), (np.nan, np.inf), (0, 13, 30, 1183)):
        x = normal(rng, (T, 1184))
        x[0, at] = bad
        finite = np.isfinite(linear(Tensor(x, backend=numpy_backend), w).numpy())
        assert not finite[0].any() and finite[1:].all(), f"{T} rows, {bad} at {at}"
