"""The decode kernels of the cupy backend: every stored form, row count, plan and fusion.

References are float64 numpy on weights that `oracles.py` decodes; results land in poisoned memory.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np
import oracles
import pytest
from tolerance import assert_close, dtype_name, rms

from boostr.backends.cupy import gemv
from boostr.backends.cupy.gemv_plan import Plan
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

BF16 = ml_dtypes.bfloat16
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": BF16}
FORMS = (*FLOATS, *SCHEMES)
EPS = 1e-5
WIDE_C = 3.0  # a norm, a head norm or a gate rounds once more before the result does


def up(backend, *arrays):
    made = [None if a is None else backend.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    return made[0] if len(made) == 1 else made


def weight(backend, rng, form, N, K):
    """A random weight in a stored form, and its float64 values."""

    def tensor(a):
        return Tensor.wrap(up(backend, a), backend)

    if form in FLOATS:
        w = (rng.standard_normal((N, K)) / 2).astype(FLOATS[form])
        return tensor(w), w.astype(np.float64)
    scheme = SCHEMES[form]
    if scheme.is_block:
        raw = rng.integers(0, 256, (N, K // 32, scheme.block_bytes), dtype=np.uint8)
        scales = rng.random((N, K // 32, 2)) * [0.01, -0.05] + [0.002, 0]
        halves = scales.astype(np.float16)[:, :, : 1 if form == "q8_0" else 2]
        raw[:, :, : 2 * halves.shape[2]] = halves.view(np.uint8).reshape(N, K // 32, -1)
        rows = raw.reshape(N, -1)
        values = getattr(oracles, f"dequantize_{form}")(rows)
        return QuantizedTensor(scheme, (N, K), {"blocks": tensor(rows)}), values
    q, scales = oracles.quantize_int8(rng.standard_normal((N, K)) / 2, scheme.group_size or None)
    parts = {"values": tensor(q), "scales": tensor(scales)}
    values = oracles.dequantize_int8(q, scales, scheme.group_size or None)
    return QuantizedTensor(scheme, (N, K), parts), values


def seen(x, form):
    """What a product sees of x: under w8a8 its rows are rounded to int8."""
    return oracles.dequantize_int8(*oracles.quantize_int8(x)) if form == "w8a8" else x.astype("f8")


def normed(x, norm, offset=0.0):
    h = x.astype(np.float64)
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + EPS) * (norm.astype(np.float64) + offset)
    return h.astype(x.dtype)


def close(actual, reference, dtype, form, K, scale, c=None, message=""):
    # under w8a8 a value of x on the border of two integers may go to either: 1 / 127 of its row
    dtype = "bfloat16" if form == "w8a8" else dtype
    actual = actual.get()
    assert_close(actual, reference, dtype=dtype, reduce=K, scale=scale, c=c, err_msg=message)


def check_product(backend, rng, form, dtype, M, N, K, *, norm=False, out=None, plan=None):
    x = rng.standard_normal((M, K)).astype(FLOATS[dtype])
    w, values = weight(backend, rng, form, N, K)
    bias, residual = (rng.standard_normal(s).astype(x.dtype) for s in ((N,), (M, N)))
    vector = (rng.standard_normal(K) * 0.3 + 1).astype(np.float32)
    first = gemv.Norm(up(backend, vector), EPS, 0.5) if norm else None
    y = gemv.gemv(
        backend, up(backend, x), w, *up(backend, bias, residual), out, norm=first, plan=plan
    )
    h = seen(normed(x, vector, 0.5) if norm else x, form)
    reference = h @ values.T + bias.astype(np.float64) + residual.astype(np.float64)
    c = WIDE_C if norm and dtype != "float32" else None
    judged = dtype if c else dtype_name(y.dtype)
    assert dtype_name(y.dtype) == dtype_name(out or dtype)
    close(y, reference, judged, form, K, rms(h) * rms(values), c, f"{form} {plan}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("M", (1, 3, 8))
def test_every_form_and_row_count(cupy_backend, rng, form, M):
    check_product(cupy_backend, rng, form, "bfloat16", M, 97, 576)
    if M != 3:
        check_product(cupy_backend, rng, form, "bfloat16", M, 33, 1024, norm=True, out="float32")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_every_x(cupy_backend, rng, form, dtype):
    check_product(cupy_backend, rng, form, dtype, 2, 65, 608, norm=True)


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("q8_0", "q4_1")])
@pytest.mark.parametrize("K", (1, 7, 33, 577, 1000))
def test_rows_off_16_bytes(cupy_backend, rng, form, K):
    check_product(cupy_backend, rng, form, "bfloat16", 1 + K % 3, 45, K, norm=K % 2 == 1)


@pytest.mark.parametrize("lanes", (8, 16, 32))
@pytest.mark.parametrize("per_lane", (1, 2, 4))
@pytest.mark.parametrize("ksplit", (1, 4))
def test_plans(cupy_backend, rng, lanes, per_lane, ksplit):
    fetch = 1 if cupy_backend.caps.compute_capability >= 80 else 0
    plan = Plan(lanes, per_lane, 2, 3, ksplit, fetch=fetch)
    check_product(cupy_backend, rng, "bfloat16", "bfloat16", 1, 301, 1856, plan=plan)
    if per_lane == 2:
        plan = replace(plan, unroll=1, packed=True)
        check_product(cupy_backend, rng, "int8", "bfloat16", 4, 301, 1856, norm=True, plan=plan)


@pytest.mark.parametrize(
    ("form", "M", "N", "K"),
    [
        ("bfloat16", 1, 4096, 14336),
        ("bfloat16", 8, 256, 14336),  # more x than fits shared memory
        ("float32", 8, 100, 14336),
        ("int8", 1, 49152, 576),
        ("q8_0", 1, 4, 11008),
        ("bfloat16", 1, 1, 8),
    ],
)
def test_large_and_small(cupy_backend, rng, form, M, N, K):
    check_product(cupy_backend, rng, form, "float32" if form == "float32" else "bfloat16", M, N, K)


def test_weights_fetched_early(cupy_backend, rng):
    with cupy_backend.constant_weights():
        for form in ("bfloat16", "int8-g128", "q8_0"):
            check_product(cupy_backend, rng, form, "bfloat16", 1, 2048, 1024)
            check_product(cupy_backend, rng, form, "bfloat16", 1, 97, 576, norm=True)


def test_views(cupy_backend, rng):
    """x and weights that begin off a 16-byte border."""
    x = rng.standard_normal((1, 65)).astype(BF16)
    w = rng.standard_normal((41, 64)).astype(BF16)
    flat = up(cupy_backend, np.concatenate([np.zeros(1, BF16), w.ravel()]))[1:].reshape(41, 64)
    y = gemv.gemv(cupy_backend, up(cupy_backend, x)[:, 1:], Tensor.wrap(flat, cupy_backend))
    reference = x[:, 1:].astype(np.float64) @ w.astype(np.float64).T
    close(y, reference, "bfloat16", "", 64, 1.0)


@pytest.mark.parametrize(
    ("form", "act"),
    [*((form, "silu") for form in FORMS), ("bfloat16", "gelu"), ("bfloat16", "gelu_tanh")],
)
@pytest.mark.parametrize("M", (1, 3))
def test_gated(cupy_backend, rng, form, act, M):
    F, K = 67, 576
    x, norm = rng.standard_normal((M, K)).astype(BF16), rng.random(K).astype(np.float32)
    (g, gate), (u, upper) = (weight(cupy_backend, rng, form, F, K) for _ in range(2))
    bias = rng.standard_normal(F).astype(BF16)
    y = gemv.norm_gated_gemv(
        cupy_backend, up(cupy_backend, x), gemv.Norm(up(cupy_backend, norm), EPS), g, u, act=act,
        gate_bias=up(cupy_backend, bias) if M == 3 else None,
    )  # fmt: skip
    h = seen(normed(x, norm), form)
    left = h @ gate.T + (bias.astype(np.float64) if M == 3 else 0)
    if act == "silu":
        left = oracles.silu(left)
    else:
        left = oracles.gelu(left, "none" if act == "gelu" else "tanh")
    right = h @ upper.T
    scale = rms(h) * rms(gate) * (1 + np.sqrt(K) * rms(h) * rms(upper))
    close(y, left * right, "bfloat16", form, K, scale, WIDE_C)


def rotated(x, cos, sin, interleaved):
    """x [M, H, D] turned by cos, sin [M, R/2]."""
    half, y = cos.shape[1], x.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if interleaved
        else (slice(0, half), slice(half, 2 * half))
    )
    a, b, c, s = x[..., first], x[..., second], cos[:, None], sin[:, None]
    y[..., first], y[..., second] = a * c - b * s, b * c + a * s
    return y


def check_qkv(backend, rng, form, M, H, KH, D, R, K, *, interleaved, head_norm, plan=None):
    x, norm = rng.standard_normal((M, K)).astype(BF16), rng.random(K).astype(np.float32)
    weights = [weight(backend, rng, form, n * D, K) for n in (H, KH, KH)]
    biases = [rng.standard_normal(n * D).astype(BF16) for n in (H, KH, KH)]
    cos, sin = (rng.standard_normal((50, R // 2)).astype(np.float32) for _ in range(2))
    rows = rng.integers(0, 50, M).astype(np.int32)
    slots = rng.permutation(28)[:M].astype(np.int32)
    slots[1:2] = -1
    caches = [rng.standard_normal((7, 4, KH, D)).astype(BF16) for _ in range(2)]
    k_cache, v_cache = up(backend, *caches)
    own = (rng.random((2, D)) + 0.5).astype(np.float32)
    q = gemv.qkv_rope_write(
        backend, up(backend, x), gemv.Norm(up(backend, norm), EPS), tuple(w for w, _ in weights),
        gemv.Rope(*up(backend, cos, sin, rows), interleaved), k_cache, v_cache, up(backend, slots),
        head_norm=gemv.HeadNorm(*up(backend, *own), EPS) if head_norm else None,
        biases=tuple(up(backend, *biases)), plan=plan,
    )  # fmt: skip
    h, made = seen(normed(x, norm), form), []
    for i, (_, values) in enumerate(weights):
        y = (h @ values.T + biases[i].astype(np.float64)).reshape(M, -1, D)
        if head_norm and i < 2:
            y = y / np.sqrt((y * y).mean(-1, keepdims=True) + EPS) * own[i]
        made.append(rotated(y, cos[rows], sin[rows], interleaved) if i < 2 else y)
    scale = max(map(rms, made)) / np.sqrt(K)
    close(q, made[0], "bfloat16", form, K, scale, WIDE_C, "q")
    for new, before, after in zip(made[1:], caches, (k_cache, v_cache), strict=True):
        reference = oracles.kv_write(before.astype(np.float64), new, slots)
        close(after, reference, "bfloat16", form, K, scale, WIDE_C, "cache")


@pytest.mark.parametrize("form", FORMS)
def test_qkv(cupy_backend, rng, form):
    check_qkv(cupy_backend, rng, form, 1, 9, 3, 64, 64, 576, interleaved=False, head_norm=False)


@pytest.mark.parametrize("form", ("bfloat16", "int8", "q4_1"))
def test_qkv_of_rows_with_partial_rotary(cupy_backend, rng, form):
    check_qkv(cupy_backend, rng, form, 5, 4, 2, 48, 32, 320, interleaved=True, head_norm=False)


@pytest.mark.parametrize("form", ("bfloat16", "int8", "q4_1"))
@pytest.mark.parametrize("cluster", (1, 4, 8))
def test_qkv_with_head_norms(cupy_backend, rng, form, cluster):
    if cluster > 1 and cupy_backend.caps.compute_capability < 90:
        pytest.skip("clusters are for a later device")
    plan = Plan(unroll=1, stages=2, ksplit=min(cluster, 4), cluster=cluster)
    for M in (1, 3):
        check_qkv(
            cupy_backend, rng, form, M, 4, 2, 128, 128, 1024, interleaved=False, head_norm=True,
            plan=plan,
        )  # fmt: skip


def test_qkv_with_head_norms_by_its_own_plan(cupy_backend, rng):
    check_qkv(
        cupy_backend, rng, "bfloat16", 1, 16, 8, 128, 96, 1024, interleaved=True, head_norm=True
    )  # fmt: skip
