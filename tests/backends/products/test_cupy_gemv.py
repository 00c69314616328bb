"""What is CUDA's own in the GEMVs: plans, early fetches, the fused qkv of a decode step.

References are float64 numpy on weights that `oracles.py` decodes; results land in poisoned memory.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np
import oracles
import pytest
from backends.products.test_gpu_gemv import (
    EPS,
    FORMS,
    WIDE_C,
    check_gated,
    check_product,
    close,
    normed,
    rotated,
    seen,
    up,
    weight,
)
from draws import normal
from ops.test_schemes import CASES
from packed import BLOCKS, fitted, tensor_of
from tolerance import TWO_DIGITS, assert_close, rms
from toys import drawn, meaning

from boostr import Tensor
from boostr.backends.cupy.products import gemv
from boostr.backends.cupy.products.gemv_plan import Plan
from boostr.backends.cupy.products.gemv_qkv import HeadNorm, qkv_rope_write
from boostr.backends.cupy.products.stored import form_refusal
from boostr.backends.cupy.rows.rope import Tables
from boostr.quant.forms import scheme_form
from boostr.quant.scheme import SCHEMES

BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize(("scheme", "K"), CASES, ids=lambda case: getattr(case, "name", case))
def test_every_kind_of_scheme(cupy_backend, rng, scheme, K):
    """Rows that end with a stage and within one, of every type of x."""
    if form_refusal(scheme_form(scheme)):
        pytest.skip("left to the composite")
    parts = drawn(rng, scheme, 53, K)
    w, values = tensor_of(cupy_backend, scheme, (53, K), parts), meaning(scheme, parts, K)
    sizes = np.sqrt((values**2).mean(1))  # of rows, whose scales are drawn one by one
    for M, dtype in ((1, "bfloat16"), (2, "float16"), (3, "float32"), (8, "bfloat16")):
        x = normal(rng, (M, K), dtype)
        got = gemv.gemv(cupy_backend, up(cupy_backend, x), w, out_dtype=np.dtype("float32"))
        assert_close(
            cupy_backend.to_numpy(got), x.astype("f8") @ values.T, dtype="float32", reduce=K,
            scale=rms(x) * sizes, c=TWO_DIGITS if dtype != "float32" else None,
            err_msg=f"{M} rows of {dtype}",
        )  # fmt: skip


@pytest.mark.parametrize("lanes", (8, 16, 32))
@pytest.mark.parametrize("per_lane", (1, 2, 4))
@pytest.mark.parametrize("ksplit", (1, 4))
def test_plans(cupy_backend, rng, lanes, per_lane, ksplit):
    fetch = 1 if cupy_backend.caps.compute_capability >= 80 else 0
    plan = Plan(lanes, per_lane, 2, 3, ksplit, fetch=fetch)
    check_product(cupy_backend, rng, "bfloat16", "bfloat16", 1, 301, 1856, plan=plan)
    for form in BLOCKS:
        check_product(cupy_backend, rng, form, "float32", 1, 301, fitted(form, 1856), plan=plan)
    if per_lane == 2:
        plan = replace(plan, unroll=1, packed=True)
        for form in ("w8a8", *BLOCKS):
            dtype, K = "bfloat16" if form == "w8a8" else "float32", fitted(form, 1856)
            check_product(cupy_backend, rng, form, dtype, 4, 301, K, norm=True, plan=plan)


@pytest.mark.parametrize("unroll", (2, 3, 4))
@pytest.mark.parametrize("per_lane", (2, 4))
@pytest.mark.parametrize(("ksplit", "M"), [(1, 1), (2, 8), (8, 1), (8, 7)])
def test_plans_of_digits(cupy_backend, rng, unroll, per_lane, ksplit, M):
    """Rows that end with a stage and within one, in blocks whose last unit is not full."""
    fetch = 1 if cupy_backend.caps.compute_capability >= 80 else 0
    plan = Plan(4, per_lane, unroll, 4 // per_lane, ksplit, fetch=fetch)
    for form in ("int8", *BLOCKS):
        if plan.depth(scheme_form(SCHEMES[form])) % (SCHEMES[form].super_size or 1):
            continue
        for K in (3072, 1856):
            check_product(cupy_backend, rng, form, "bfloat16", M, 1057, fitted(form, K), plan=plan)


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_planes_off_16_bytes(cupy_backend, rng, form, dtype):
    """Planes that begin anywhere: element by element."""
    N, K = 45, fitted(form, 96)
    w, values = weight(cupy_backend, rng, form, N, K)
    moved = {}
    for name, part in w.parts.items():
        flat = part.numpy().ravel()
        room = up(cupy_backend, np.concatenate([flat[:1], flat]))
        moved[name] = Tensor.wrap(room[1:].reshape(part.shape), cupy_backend)
    x = normal(rng, (3, K), dtype)
    got = gemv.gemv(cupy_backend, up(cupy_backend, x), replace(w, parts=moved))
    want = x.astype("f8") @ values.T
    close(cupy_backend, got, want, dtype, form, K, rms(x) * rms(values))


def test_weights_fetched_early(cupy_backend, rng):
    with cupy_backend.constant_weights():
        for form in ("bfloat16", "int8-g128", "q8_0", "q4_1"):
            check_product(cupy_backend, rng, form, "bfloat16", 1, 2048, 1024)
            check_product(cupy_backend, rng, form, "bfloat16", 1, 97, 576, norm=True)


def check_qkv(backend, rng, form, M, H, KH, D, R, K, *, interleaved, head_norm, plan=None):
    """form: of all weights, or of q, k and v."""
    forms = (form,) * 3 if isinstance(form, str) else form
    x, norm = rng.standard_normal((M, K)).astype(BF16), rng.random(K).astype(np.float32)
    weights = [weight(backend, rng, f, n * D, K) for f, n in zip(forms, (H, KH, KH), strict=True)]
    biases = [rng.standard_normal(n * D).astype(BF16) for n in (H, KH, KH)]
    cos, sin = (rng.standard_normal((50, R // 2)).astype(np.float32) for _ in range(2))
    rows = rng.integers(0, 50, M).astype(np.int32)
    slots = rng.permutation(28)[:M].astype(np.int32)
    slots[1:2] = -1
    caches = [rng.standard_normal((7, 4, KH, D)).astype(BF16) for _ in range(2)]
    k_cache, v_cache = up(backend, *caches)
    own = (rng.random((2, D)) + 0.5).astype(np.float32)
    q = qkv_rope_write(
        backend, up(backend, x), gemv.Norm(up(backend, norm), EPS), tuple(w for w, _ in weights),
        Tables(*up(backend, cos, sin, rows), None, interleaved), k_cache, v_cache,
        up(backend, slots), head_norm=HeadNorm(*up(backend, *own), EPS) if head_norm else None,
        biases=tuple(up(backend, *biases)), plan=plan,
    )  # fmt: skip
    h, made = normed(x, norm), []
    for i, (_, values) in enumerate(weights):
        y = (seen(h, forms[i]) @ values.T + biases[i].astype(np.float64)).reshape(M, -1, D)
        if head_norm and i < 2:
            y = y / np.sqrt((y * y).mean(-1, keepdims=True) + EPS) * own[i]
        made.append(rotated(y, cos[rows], sin[rows], interleaved) if i < 2 else y)
    scale = max(map(rms, made)) / np.sqrt(K)
    close(backend, q, made[0], "bfloat16", forms[0], K, scale, WIDE_C, "q")
    for f, new, before, after in zip(
        forms[1:], made[1:], caches, (k_cache, v_cache), strict=True
    ):  # fmt: skip
        reference = oracles.kv_write(before.astype(np.float64), new, slots)
        close(backend, after, reference, "bfloat16", f, K, scale, WIDE_C, "cache")


@pytest.mark.parametrize("form", FORMS)
def test_qkv(cupy_backend, rng, form):
    K = fitted(form, 576)
    check_qkv(cupy_backend, rng, form, 1, 9, 3, 64, 64, K, interleaved=False, head_norm=False)


@pytest.mark.parametrize("form", ("bfloat16", "int8", "q4_1", "q8_0"))
def test_qkv_of_rows_with_partial_rotary(cupy_backend, rng, form):
    check_qkv(cupy_backend, rng, form, 5, 4, 2, 48, 32, 320, interleaved=True, head_norm=False)


@pytest.mark.parametrize("form", ("bfloat16", "int8", "q4_1"))
@pytest.mark.parametrize("cluster", (1, 4, 8))
def test_qkv_with_head_norms(cupy_backend, rng, form, cluster):
    if cluster > 1 and cupy_backend.caps.compute_capability < 90:
        pytest.skip("clusters are for a later device")
    lanes = 8 if form == "bfloat16" else 4
    plan = Plan(lanes, unroll=2, stages=2, ksplit=min(cluster, 4), cluster=cluster)
    for M in (1, 3):
        check_qkv(
            cupy_backend, rng, form, M, 4, 2, 128, 128, 1024, interleaved=False, head_norm=True,
            plan=plan,
        )  # fmt: skip


def test_qkv_with_head_norms_by_its_own_plan(cupy_backend, rng):
    check_qkv(
        cupy_backend, rng, "bfloat16", 1, 16, 8, 128, 96, 1024, interleaved=True, head_norm=True
    )  # fmt: skip


# stored otherwise than the others: v as in half of the layers of a Q4_K_M, or what a UD file has
MIXED = (
    ("q4_k", "q4_k", "q6_k"), ("q6_k", "bfloat16", "q4_1"), ("float16", "q5_k", "q5_k"),
    ("w8a8", "int8", "w8a8"), ("nf4", "q3_k", "fp8"),
)  # fmt: skip


@pytest.mark.parametrize("forms", MIXED, ids="-".join)
@pytest.mark.parametrize("M", (1, 3))
@pytest.mark.parametrize("head_norm", (False, True))
def test_qkv_of_mixed_forms(cupy_backend, rng, forms, M, head_norm):
    check_qkv(
        cupy_backend, rng, forms, M, 6, 2, 64, 64, 768, interleaved=head_norm, head_norm=head_norm
    )


@pytest.mark.parametrize(
    "forms", (("q6_k", "q4_k"), ("bfloat16", "q8_0"), ("w8a8", "nf4")), ids="-".join
)
@pytest.mark.parametrize("act", ("silu", "gelu", "gelu_tanh"))
@pytest.mark.parametrize("M", (1, 3))
def test_gated_of_mixed_forms(cupy_backend, rng, forms, act, M):
    check_gated(cupy_backend, rng, forms, act, M, 67, 768)
