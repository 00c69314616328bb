"""Products of many rows on CUDA's tensor cores, by weights of every form: they decode exactly."""

import numpy as np
import pytest
from draws import normal, tensors
from ops.test_schemes import CASES, TOYS, drawn, meaning
from packed import tensor_of
from tolerance import EPS, assert_close, rms

from boostr import Tensor
from boostr.backends.cupy.products import gemm, gemm_sm90
from boostr.backends.cupy.products.stored import Stored, form_refusal
from boostr.ops.linear import linear
from boostr.quant.forms import scheme_form


def on_tensor_cores(scheme):
    form = scheme_form(scheme)
    return form_refusal(form) is None and gemm.mma_refusal(form) is None


WIDE = [scheme for scheme in TOYS if on_tensor_cores(scheme)]
# numbers of two terms have 16 bits, and so have sums of x; other weights have all of theirs
EXACT = 2.0**-15 / EPS["float32"]


def case(backend, rng, scheme, M, N, K, dtype="bfloat16"):
    """(x, weight, their product in float64, the size of a term of it)."""
    parts = drawn(rng, scheme, N, K)
    w, truth = tensor_of(backend, scheme, (N, K), parts), meaning(scheme, parts, K)
    x = normal(rng, (M, K), dtype)
    return Tensor(x, backend=backend), w, x.astype(np.float64) @ truth.T, rms(x) * rms(truth)


def check(got, want, K, term):
    """A result in float32: weights rounded to 16-bit floats would be outside of this bound."""
    assert_close(got.numpy(), want, dtype="float32", reduce=K, scale=term, c=EXACT)


def test_the_forms_of_files_are_taken():
    """Groups of 8 alone are left to ordinary arithmetic."""
    assert {scheme.name for scheme in TOYS} - {scheme.name for scheme in WIDE} <= {"int8-g8"}


@pytest.mark.parametrize(("scheme", "K"), CASES, ids=lambda case: getattr(case, "name", case))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_linear(cupy_backend, rng, scheme, K, dtype):
    if not on_tensor_cores(scheme):
        pytest.skip("not for tensor cores")
    for M in (9, 40, 130, 300):
        x, w, want, term = case(cupy_backend, rng, scheme, M, 150, K, dtype)
        check(linear(x, w, dtype="float32"), want, K, term)


@pytest.mark.parametrize("scheme", WIDE, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("shares", (1, 3))
def test_mma(cupy_backend, rng, scheme, shares):
    """What GPUs other than Hopper run."""
    for M in (20, 50, 150):
        x, w, want, term = case(cupy_backend, rng, scheme, M, 150, 768)
        out = Tensor(np.full((M, 150), np.nan, np.float32), backend=cupy_backend)
        stored = [Stored.of(w, cupy_backend)]
        gemm.mma(cupy_backend, x.data, stored, [None], None, out.data, shares=shares)
        check(out, want, 768, term)


PLANS = {
    "peers": gemm_sm90.Warpgroups(2, 256, 3, peers=2),
    "peers and shares": gemm_sm90.Warpgroups(2, 128, 3, shares=3, peers=2),
    "one group": gemm_sm90.Warpgroups(1, 64, 3, peers=2),
    "more shares than steps": gemm_sm90.Warpgroups(1, 16, 3, shares=8),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("scheme", WIDE, ids=lambda scheme: scheme.name)
def test_warpgroups(cupy_backend, rng, scheme, plan):
    """Weights side by side, whose row tiles are odd in number."""
    if cupy_backend.caps.compute_capability != 90:
        pytest.skip("warpgroup products are Hopper's")
    cut = PLANS[plan]
    if gemm_sm90.out_of_registers(scheme_form(scheme), cut.tokens):
        pytest.skip("takes fewer tokens")
    K = 256 if plan == "more shares than steps" else 768
    x, w, want, term = case(cupy_backend, rng, scheme, cut.tokens + 13, 300, K)
    bias = normal(rng, (300,))
    (tb,) = tensors(cupy_backend, bias)
    pieces = [(0, 140), (140, 300)]
    weights = [Stored.of(w.rows(*piece), cupy_backend) for piece in pieces]
    biases = [tb.data[a:b] for a, b in pieces]
    out = Tensor(np.full((cut.tokens + 13, 300), np.nan, np.float32), backend=cupy_backend)
    gemm_sm90.hopper(cupy_backend, x.data, weights, biases, None, out.data, plan=cut)
    check(out, want + bias, K, term)


@pytest.mark.parametrize("group", (16, 32, 128, 256))
def test_sums_of_groups(cupy_backend, rng, group):
    for dtype, K in (("bfloat16", 768), ("float16", 832), ("bfloat16", 101)):
        x = normal(rng, (5, K), dtype)
        got = gemm_sm90.group_sums(cupy_backend, Tensor(x, backend=cupy_backend).data, group)
        pairs = Tensor.wrap(got, cupy_backend).numpy().astype(np.float64)
        sums = pairs[:, ::2] + pairs[:, 1::2]
        G = -(-K // group)
        wide = np.zeros((5, G * group))
        wide[:, :K] = x
        want = wide.reshape(5, G, group).sum(2)
        np.testing.assert_allclose(sums[:, :G], want, rtol=2.0**-15, atol=1e-6)
        assert not sums[:, G:].any()
