"""Norms of every kind before the GEMVs of a GPU, and activations behind them, strictly.

References are float64 numpy. Rows have a mean far from 0, as a stream of residuals may have, and an
input that is larger than all others.
"""

import numpy as np
import oracles
import pytest
from backends.products.test_gpu_gemv import WIDE_C, close, kernels, seen, up, weight
from draws import large, normal
from packed import fitted
from tolerance import rms

EPS = 1e-5
# layer, offset, whether there is a bias
KINDS = {
    "rms+1": (False, 1.0, False), "layer": (True, 0.0, False),
    "layer with a bias": (True, 0.0, True), "layer+1 with a bias": (True, 1.0, True),
}  # fmt: skip
ACTS = {
    None: lambda z: z,
    "silu": oracles.silu,
    "gelu": oracles.gelu,
    "gelu_tanh": lambda z: oracles.gelu(z, "tanh"),
    "quick_gelu": lambda z: z / (1 + np.exp(-1.702 * z)),
    "relu": lambda z: np.maximum(z, 0),
    "relu2": lambda z: np.maximum(z, 0) ** 2,
}


def drawn(rng, M, K, dtype):
    x = normal(rng, (M, K), "float32") + np.float32(20)
    x[:, K // 2] = 300
    return x.astype(dtype)


def norm_of(backend, rng, kind, K):
    """(the norm as kernels take it, what it makes of x, rounded to x's dtype)."""
    layer, offset, biased = KINDS[kind]
    gain, bias = normal(rng, K, scale=0.3) + 1, normal(rng, K) if biased else None
    norm = kernels(backend).Norm(up(backend, gain), EPS, offset, layer, up(backend, bias))

    def of(x):
        if layer:
            made = oracles.layer_norm(x.astype("f8"), gain + offset, bias, EPS)
        else:
            made = oracles.rms_norm(x.astype("f8"), gain, EPS, None, offset)
        return made[0].astype(x.dtype)

    return norm, of


def check(backend, rng, kind, form, dtype, M, N, K, act=None, **chosen):
    """gemv of normed rows; chosen: plan (cupy) or tile (wgpu)."""
    K = fitted(form, K)
    norm, of = norm_of(backend, rng, kind, K)
    x, (w, values) = drawn(rng, M, K, dtype), weight(backend, rng, form, N, K)
    bias = normal(rng, N)
    y = kernels(backend).gemv(
        backend, up(backend, x), w, up(backend, bias), None, np.float32, norm=norm, act=act or "",
        **chosen,
    )  # fmt: skip
    h = seen(of(x), form)
    z = h @ values.T + bias
    slope = 1 if act != "relu2" else 1 + 2 * np.abs(z).max()
    c = WIDE_C * (1.5 if dtype == "float32" else 1)  # of a norm that rounds x - mean, 20 off 0
    close(
        backend, y, ACTS[act](z), dtype, form, K, slope * rms(h) * rms(values), c,
        f"{kind} {form} {chosen}",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "dtype", "M", "N", "K"), [
    ("bfloat16", "bfloat16", 1, 37, 96), ("float32", "float32", 2, 18, 160),
    ("q4_1", "bfloat16", 2, 21, 192), ("w8a8", "bfloat16", 2, 21, 96),
    ("bfloat16", "float16", 1, 21, 65),
    *(large(form, "bfloat16", M, 97, K) for form in ("bfloat16", "int8", "q4_k", "w8a8")
      for M in (1, 3, 8) for K in (96, 1000, 2048)),
    large("float32", "float32", 1, 64, 2048), large("float16", "float16", 4, 64, 6144),
    large("bfloat16", "bfloat16", 1, 64, 14336), large("float32", "float32", 8, 64, 777),
])  # fmt: skip
def test_norms(gpu, rng, kind, form, dtype, M, N, K):
    check(gpu, rng, kind, form, dtype, M, N, K)


@pytest.mark.parametrize("kind", ("rms+1", "layer with a bias"))
def test_norms_of_any_gpu(any_gpu, rng, kind):
    check(any_gpu, rng, kind, "int8", "bfloat16", 2, 21, 96)


@pytest.mark.parametrize("act", [a for a in ACTS if a])
@pytest.mark.parametrize(("form", "M"), [("bfloat16", 1), large("q4_1", 3)])
def test_activations(gpu, rng, act, form, M):
    check(gpu, rng, "layer", form, "bfloat16", M, 37, 96, act)


@pytest.mark.parametrize("act", ("relu", "relu2", "gelu"))
def test_a_nan_is_not_lost(gpu, rng, act):
    w, _ = weight(gpu, rng, "bfloat16", 8, 64)
    x = np.full((1, 64), np.nan, np.float32)
    y = kernels(gpu).gemv(gpu, up(gpu, x), w, act=act)
    assert np.isnan(gpu.to_numpy(y)).all()


@pytest.mark.parametrize("act", ("quick_gelu", "relu2"))
@pytest.mark.parametrize("kind", ("rms+1", "layer with a bias"))
@pytest.mark.parametrize(
    ("form", "M", "F", "K"), [("bfloat16", 2, 27, 96), large("q4_1", 5, 67, 768)]
)
def test_gated(gpu, rng, act, kind, form, M, F, K):
    K = fitted(form, K)
    norm, of = norm_of(gpu, rng, kind, K)
    x = drawn(rng, M, K, "float32")
    (g, gate), (u, upper) = (weight(gpu, rng, form, F, K) for _ in range(2))
    y = kernels(gpu).norm_gated_gemv(gpu, up(gpu, x), norm, g, u, act=act)
    h = of(x).astype("f8")
    left, right = ACTS[act](h @ gate.T), h @ upper.T
    slope = 1 if act != "relu2" else 1 + 2 * np.abs(h @ gate.T).max()
    scale = slope * rms(h) * rms(gate) * (1 + np.sqrt(K) * rms(h) * rms(upper))
    # two sums are off, and the activation's slope is above 1: 1.7 times what 4 allows on a GPU
    close(gpu, y, left * right, "float32", form, K, scale, 8 * WIDE_C)
