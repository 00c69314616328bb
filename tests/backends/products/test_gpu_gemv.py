"""The GEMVs of a GPU: every stored form, row count and fusion, strictly.

References are float64 numpy on weights that `oracles.py` decodes. Memory that nobody has written
is nan.
"""

from importlib import import_module

import numpy as np
import oracles
import packed
import pytest
from draws import every, large, normal
from ops import linear_cases
from packed import fitted
from tolerance import assert_close, dtype_name, rms

from boostr import Tensor

FLOATS = ("float32", "float16", "bfloat16")
FORMS = (*FLOATS, *packed.FORMS)
EPS = 1e-5
WIDE_C = 3.0  # a norm, a head norm or a gate rounds once more before the result does


def kernels(backend):
    """The module that launches them."""
    return import_module(f"boostr.backends.{backend.name}.products.gemv")


def up(backend, *arrays):
    made = [None if a is None else backend.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    return made[0] if len(made) == 1 else made


def weight(backend, rng, form, N, K):
    """A random weight in a stored form, and its float64 values."""
    kind, dtype = ("float", form) if form in FLOATS else (form, "float32")
    return linear_cases.weight(backend, rng, kind, N, K, dtype, 0.5)


def seen(x, form):
    """What a product sees of x: under w8a8 its rows are rounded to int8."""
    return oracles.dequantize_int8(*oracles.quantize_int8(x)) if form == "w8a8" else x.astype("f8")


def normed(x, norm, offset=0.0):
    return oracles.rms_norm(x.astype("f8"), norm, EPS, None, offset)[0].astype(x.dtype)


def close(backend, actual, reference, dtype, form, K, scale, c=None, message=""):
    # under w8a8 a value of x on the border of two integers may go to either: 1 / 127 of its row
    dtype = "bfloat16" if form == "w8a8" else dtype
    actual = backend.to_numpy(actual)
    assert_close(actual, reference, dtype=dtype, reduce=K, scale=scale, c=c, err_msg=message)


def check_product(backend, rng, form, dtype, M, N, K, *, norm=False, out=None, **chosen):
    """chosen: plan (cupy) or tile (wgpu)."""
    gemv, offset = kernels(backend), 0.5
    K = fitted(form, K)
    w, values = weight(backend, rng, form, N, K)
    x, bias, residual = (normal(rng, s, dtype) for s in ((M, K), (N,), (M, N)))
    vector = normal(rng, K, scale=0.3) + 1
    first = gemv.Norm(up(backend, vector), EPS, offset) if norm else None
    y = gemv.gemv(
        backend, up(backend, x), w, *up(backend, bias, residual), out, norm=first, **chosen
    )
    h = seen(normed(x, vector, offset) if norm else x, form)
    reference = h @ values.T + bias.astype("f8") + residual.astype("f8")
    c = WIDE_C if norm and dtype != "float32" else None
    judged = dtype if c else dtype_name(y.dtype)
    assert dtype_name(y.dtype) == dtype_name(out or dtype)
    close(backend, y, reference, judged, form, K, rms(h) * rms(values), c, f"{form} {chosen}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("M", "N", "K"), [
    (1, 37, 96), (3, 37, 96), *(large(M, 97, 576) for M in (1, 3, 8))
])  # fmt: skip
def test_every_form(gpu, rng, form, M, N, K):
    check_product(gpu, rng, form, "bfloat16", M, N, K)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 18, 192), large(1, 33, 1024), large(8, 33, 1024)])
def test_every_form_of_normed_rows(gpu, rng, form, M, N, K):
    check_product(gpu, rng, form, "bfloat16", M, N, K, norm=True, out="float32")


@pytest.mark.parametrize("form", ("bfloat16", "int8-g32", "w8a8"))
@pytest.mark.parametrize("M", (2, 5, 8))
def test_every_row_count(gpu, rng, form, M):
    check_product(gpu, rng, form, "bfloat16", M, 37, 96, norm=True)


@pytest.mark.parametrize(("dtype", "form"), every(
    [(dtype, form) for dtype in ("float32", "float16")
     for form in ("float32", "bfloat16", "int8", "q4_1")], ("float32", "float16"), FORMS
))  # fmt: skip
@pytest.mark.parametrize(("N", "K"), [(15, 160), large(65, 608)])
def test_every_x(gpu, rng, form, dtype, N, K):
    check_product(gpu, rng, form, dtype, 2, N, K, norm=True)


@pytest.mark.parametrize("form", [f for f in FORMS if packed.fitted(f, 1) == 1])
@pytest.mark.parametrize("K", (1, large(7), large(33), 200, large(577), large(1000)))
def test_rows_off_16_bytes(gpu, rng, form, K):
    check_product(gpu, rng, form, "bfloat16", 1 + K % 3, 45, K, norm=K % 2 == 1)


@pytest.mark.parametrize(
    ("form", "M", "N", "K"),
    [
        large("bfloat16", 1, 4096, 14336),
        large("bfloat16", 8, 256, 14336),  # more x than fits shared memory
        large("float32", 8, 100, 14336),
        large("int8", 1, 49152, 576),
        ("q8_0", 1, 4, 11008),
        ("bfloat16", 1, 1, 8),
    ],
)
def test_large_and_small(gpu, rng, form, M, N, K):
    check_product(gpu, rng, form, "float32" if form == "float32" else "bfloat16", M, N, K)


def test_views(gpu, rng):
    """x and weights that begin off a 16-byte border."""
    x, w = normal(rng, (1, 65), "bfloat16"), normal(rng, (41, 64), "bfloat16")
    flat = Tensor(np.concatenate([np.zeros(1, w.dtype), w.ravel()]), backend=gpu)
    y = kernels(gpu).gemv(gpu, Tensor(x, backend=gpu)[:, 1:].data, flat[1:].reshape(41, 64))
    reference = x[:, 1:].astype("f8") @ w.astype("f8").T
    close(gpu, y, reference, "bfloat16", "", 64, 1.0)


def check_gated(backend, rng, form, act, M, F, K, **chosen):
    """form: of both weights, or of gate and up."""
    forms = (form,) * 2 if isinstance(form, str) else form
    gemv, K = kernels(backend), max(fitted(f, K) for f in forms)
    x, norm = normal(rng, (M, K), "bfloat16"), rng.random(K).astype(np.float32)
    (g, gate), (u, upper) = (weight(backend, rng, f, F, K) for f in forms)
    bias = normal(rng, F, "bfloat16")
    y = gemv.norm_gated_gemv(
        backend, up(backend, x), gemv.Norm(up(backend, norm), EPS), g, u, act=act,
        gate_bias=up(backend, bias) if M == 3 else None, **chosen,
    )  # fmt: skip
    h = normed(x, norm)
    left = seen(h, forms[0]) @ gate.T + (bias.astype("f8") if M == 3 else 0)
    if act == "silu":
        left = oracles.silu(left)
    else:
        left = oracles.gelu(left, "none" if act == "gelu" else "tanh")
    right = seen(h, forms[1]) @ upper.T
    scale = rms(h) * rms(gate) * (1 + np.sqrt(K) * rms(h) * rms(upper))
    close(backend, y, left * right, "bfloat16", forms[0], K, scale, WIDE_C)


ACTS = [*((form, "silu") for form in FORMS), ("bfloat16", "gelu"), ("bfloat16", "gelu_tanh")]


@pytest.mark.parametrize(("M", "form", "act"), [
    (M, *act) if (3 if act[0] == "bfloat16" else 1) == M else large(M, *act)
    for M in (1, 3) for act in ACTS
])  # fmt: skip
@pytest.mark.parametrize(("F", "K"), [(27, 96), large(67, 576)])
def test_gated(gpu, rng, form, act, M, F, K):
    check_gated(gpu, rng, form, act, M, F, K)


# -- what the qkv tests of each backend need ------------------------------------------------------
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
