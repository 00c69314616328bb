"""Products of many rows on CUDA's tensor cores, by weights of every form."""

import numpy as np
import pytest
from draws import normal, tensors
from ops.test_schemes import CASES
from packed import tensor_of
from tolerance import EPS, assert_close, term_rms
from toys import TOYS, drawn, meaning

from boostr import Tensor
from boostr.backends.cupy.products import gemm, gemm_sm90, gemm_sm90_plan
from boostr.backends.cupy.products.gemm_halves import Halves, folded, halve
from boostr.backends.cupy.products.stored import Stored, form_refusal, of_integers
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize
from boostr.quant.forms import scheme_form


def on_tensor_cores(scheme):
    form = scheme_form(scheme)
    return form_refusal(form) is None and gemm.mma_refusal(form) is None


WIDE = [scheme for scheme in TOYS if on_tensor_cores(scheme)]
# numbers of two terms have 16 bits; other weights have all of theirs
EXACT = 2.0**-15 / EPS["float32"]
# A weight that is rounded to float16, after its scale was, is off by 0.6 of 2^-11 rms. So is a sum
# in units of its own size (`term_rms`), whose signs are random: this is seven times as much.
FOLDED = 2.0**-9 / EPS["float32"]


def on_hopper(backend, scheme, few=False):
    """The bound for this scheme there, where others may run as on every GPU."""
    hopper = backend.caps.compute_capability == 90 and not few
    return FOLDED if hopper and folded(scheme_form(scheme)) else EXACT


def case(backend, rng, scheme, M, N, K, dtype="bfloat16"):
    """(x, weight, their product in float64, the size of the terms of each result)."""
    parts = drawn(rng, scheme, N, K)
    w, truth = tensor_of(backend, scheme, (N, K), parts), meaning(scheme, parts, K)
    x = normal(rng, (M, K), dtype)
    return Tensor(x, backend=backend), w, x.astype(np.float64) @ truth.T, term_rms(x, truth)


def check(got, want, K, term, c=EXACT):
    """A result in float32: bf16 weights would be outside of either bound."""
    assert_close(got.numpy(), want, dtype="float32", reduce=K, scale=term, c=c)


def test_the_forms_of_files_are_taken():
    """Groups of 8 and of 96 alone are left to ordinary arithmetic."""
    assert {scheme.group_size for scheme in TOYS if scheme not in WIDE} <= {8, 96}


@pytest.mark.parametrize(("scheme", "K"), CASES, ids=lambda case: getattr(case, "name", case))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_linear(cupy_backend, rng, scheme, K, dtype):
    if not on_tensor_cores(scheme):
        pytest.skip("not for tensor cores")
    for M in (9, 40, 130, 300):
        x, w, want, term = case(cupy_backend, rng, scheme, M, 150, K, dtype)
        check(linear(x, w, dtype="float32"), want, K, term, on_hopper(cupy_backend, scheme))


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
    "wide": gemm_sm90.Warpgroups(2, 256, 3),
    "shares": gemm_sm90.Warpgroups(2, 128, 3, shares=3),
    "one group": gemm_sm90.Warpgroups(1, 64, 3),
    "more shares than steps": gemm_sm90.Warpgroups(1, 16, 3, shares=8),
    "half as wide": gemm_sm90.Warpgroups(2, 128, 4),
    "few": gemm_sm90.Warpgroups(2, 64, 3, few=True),
    "few by one group": gemm_sm90.Warpgroups(1, 32, 3, few=True),
    "few, a share for each step": gemm_sm90.Warpgroups(2, 16, 2, shares=6, few=True),
    "few, two shares": gemm_sm90.Warpgroups(2, 8, 3, shares=2, few=True),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("scheme", WIDE, ids=lambda scheme: scheme.name)
def test_warpgroups(cupy_backend, rng, scheme, plan):
    """Weights side by side, whose row tiles are odd in number."""
    if cupy_backend.caps.compute_capability != 90:
        pytest.skip("warpgroup products are Hopper's")
    cut = PLANS[plan]
    if cut.few and scheme_form(scheme).table and not of_integers(scheme_form(scheme)):
        pytest.skip("numbers of more than 16 bits")
    K = 256 if plan == "more shares than steps" else 768
    x, w, want, term = case(cupy_backend, rng, scheme, cut.tokens + 13, 300, K)
    bias = normal(rng, (300,))
    (tb,) = tensors(cupy_backend, bias)
    pieces = [(0, 140), (140, 300)]
    weights = [Stored.of(w.rows(*piece), cupy_backend) for piece in pieces]
    biases = [tb.data[a:b] for a, b in pieces]
    out = Tensor(np.full((cut.tokens + 13, 300), np.nan, np.float32), backend=cupy_backend)
    gemm_sm90.hopper(cupy_backend, x.data, weights, biases, None, out.data, plan=cut)
    check(out, want + bias, K, term, on_hopper(cupy_backend, scheme, cut.few))


@pytest.mark.parametrize("scheme", WIDE, ids=lambda scheme: scheme.name)
def test_decoded_once(cupy_backend, rng, scheme, monkeypatch):
    """Many rows, by pieces of weights side by side; more tiles than multiprocessors."""
    M, K = 4500, 256
    rows = Stored.of(case(cupy_backend, rng, scheme, 9, 8, K)[1], cupy_backend)
    if cupy_backend.caps.compute_capability != 90 or not gemm_sm90_plan.decodes([rows], M):
        pytest.skip("not decoded")
    monkeypatch.setattr(gemm_sm90_plan, "_DECODED_BYTES", 640 * K * 2)
    x, w, want, term = case(cupy_backend, rng, scheme, M, 1100, K)
    bias, residual = normal(rng, (1100,)), normal(rng, (M, 1100))
    tb, tr = tensors(cupy_backend, bias, residual)
    pieces = [(0, 140), (140, 1100)]
    weights = [Stored.of(w.rows(*piece), cupy_backend) for piece in pieces]
    out = Tensor(np.full((M, 1100), np.nan, np.float32), backend=cupy_backend)
    biases = [tb.data[a:b] for a, b in pieces]
    gemm_sm90.hopper(cupy_backend, x.data, weights, biases, tr.data, out.data)
    check(out, want + bias + residual, K, term, on_hopper(cupy_backend, scheme))


APART = [s for s in WIDE if s.scale in ("f32", "bf16") and s.offsets not in ("f16", "u8")]


@pytest.mark.parametrize("scheme", APART, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_rows_far_apart(cupy_backend, rng, scheme, dtype):
    """No row of x or of the weight loses bits to a larger one; zeros stay zeros."""
    M, N, K = 70, 50, 768
    parts = drawn(rng, scheme, N, K)
    truth, x = meaning(scheme, parts, K), normal(rng, (M, K), "bfloat16")
    sizes, x_sizes = (2.0 ** np.linspace(-50, 50, rows).round()[:, None] for rows in (N, M))
    sizes[7], x_sizes[3] = 0, 0
    for name in ("scales", "offsets"):
        if name in parts:
            parts[name] = (parts[name].astype(np.float64) * sizes).astype(parts[name].dtype)
    w = tensor_of(cupy_backend, scheme, (N, K), parts)
    scaled = Tensor((x.astype(np.float64) * x_sizes).astype(dtype), backend=cupy_backend)
    got = linear(scaled, w, dtype="float32").numpy().astype(np.float64)
    assert not got[3].any()
    assert not got[:, 7].any()
    sizes[7], x_sizes[3] = 1, 1
    want = x.astype(np.float64) @ truth.T
    want[3], want[:, 7] = 0, 0
    term = term_rms(x, truth)
    c = on_hopper(cupy_backend, scheme)
    assert_close(got / x_sizes / sizes.T, want, dtype="float32", reduce=K, scale=term, c=c)


def halved(backend, x, stored):
    """(x as float16, powers of its rows, factors of the weights' rows) on the host."""
    made = Halves.room(backend, x.data)
    factors = backend.empty((sum(w.N for w in stored),), np.float32)
    halve(backend, x.data, made, stored, factors)
    return (Tensor.wrap(part, backend).numpy() for part in (*made, factors))


@pytest.mark.parametrize("scheme", WIDE, ids=lambda scheme: scheme.name)
def test_powers_of_rows(cupy_backend, rng, scheme):
    """x becomes float16 without loss, and no weight can leave its range."""
    x, w, _, _ = case(cupy_backend, rng, scheme, 5, 21, 768)
    stored = [Stored.of(w.rows(0, 9), cupy_backend), Stored.of(w.rows(9, 21), cupy_backend)]
    if not folded(stored[0].form):
        pytest.skip("multiplied as it is")
    halves, powers, downs = halved(cupy_backend, x, stored)
    np.testing.assert_array_equal(halves * powers[:, None].astype(np.float64), x.numpy())
    assert ((np.abs(halves).max(1) >= 2**13) & (np.abs(halves).max(1) < 2**14)).all()
    dense = dequantize(w).numpy().astype(np.float64)
    assert downs.shape == (21,)
    assert (np.frexp(downs)[0] == 0.5).all()
    assert (np.abs(dense) < 2.0**15 * downs[:, None]).all()
    assert (np.abs(dense).max(1) > 2.0**8 * downs).all()


def test_long_rows_as_float16(cupy_backend, rng):
    """Rows that a block does not hold in registers, with and without 16-byte accesses."""
    for K in (16384 + 4096 + 8, 16384 + 33):
        x, w, _, _ = case(cupy_backend, rng, WIDE[0], 3, 2, K)
        stored = [Stored.of(w, cupy_backend)]
        got, powers, _ = halved(cupy_backend, x, stored)
        scaled = got.astype(np.float64) * powers[:, None]
        np.testing.assert_array_equal(scaled[:, :K], x.numpy())
        assert not got[:, K:].any()
