"""The GEMVs of the wgpu backend: every stored form, row count, tile and fusion, strictly.

References are float64 numpy on weights that `oracles.py` decodes. Memory that nobody has written
is nan, workgroup memory too.
"""

import itertools

import ml_dtypes
import numpy as np
import oracles
import pytest
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close, dtype_name, rms

from boostr import Tensor
from boostr.backends.wgpu import gemv, gemv_qkv
from boostr.backends.wgpu.gemv_input import quantized_rows
from boostr.backends.wgpu.gemv_plan import Tile
from boostr.quant.scheme import SCHEMES, QuantizedTensor

BF16 = ml_dtypes.bfloat16
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": BF16}
FORMS = (*FLOATS, *SCHEMES)
EPS = 1e-5
WIDE_C = 3.0  # a norm, a head norm or a gate rounds once more before the result does
LARGE = Tile(256, 64, 4, 2)


@pytest.fixture
def backend():
    with strict_wgpu() as found:
        yield found


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


def normed(x, norm):
    h = x.astype(np.float64)
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + EPS) * norm.astype(np.float64)
    return h.astype(x.dtype)


def close(backend, actual, reference, dtype, form, K, scale, c=None, message=""):
    # under w8a8 a value of x on the border of two integers may go to either: 1 / 127 of its row
    dtype = "bfloat16" if form == "w8a8" else dtype
    actual = backend.to_numpy(actual)
    assert_close(actual, reference, dtype=dtype, reduce=K, scale=scale, c=c, err_msg=message)


def check_product(backend, rng, form, dtype, M, N, K, *, norm=False, out=None, tile=None):
    x = rng.standard_normal((M, K)).astype(FLOATS[dtype])
    w, values = weight(backend, rng, form, N, K)
    bias, residual = (rng.standard_normal(s).astype(x.dtype) for s in ((N,), (M, N)))
    vector = (rng.standard_normal(K) * 0.3 + 1).astype(np.float32)
    first = gemv.Norm(up(backend, vector), EPS) if norm else None
    y = gemv.gemv(
        backend, up(backend, x), w, *up(backend, bias, residual), out, norm=first, tile=tile
    )
    h = seen(normed(x, vector) if norm else x, form)
    reference = h @ values.T + bias.astype(np.float64) + residual.astype(np.float64)
    c = WIDE_C if norm and dtype != "float32" else None
    judged = dtype if c else dtype_name(y.dtype)
    assert dtype_name(y.dtype) == dtype_name(out or dtype)
    message = f"{form} {tile}"
    close(backend, y, reference, judged, form, K, rms(h) * rms(values), c, message)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("M", (1, 3))
def test_every_form(backend, rng, form, M):
    check_product(backend, rng, form, "bfloat16", M, 37, 96)
    if M == 1:
        check_product(backend, rng, form, "bfloat16", M, 18, 192, norm=True, out="float32")


@pytest.mark.parametrize("form", ("bfloat16", "int8-g32", "w8a8"))
@pytest.mark.parametrize("M", (2, 5, 8))
def test_every_row_count(backend, rng, form, M):
    check_product(backend, rng, form, "bfloat16", M, 37, 96, norm=True)


@pytest.mark.parametrize("form", ("float32", "bfloat16", "int8", "q4_1"))
@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_every_x(backend, rng, form, dtype):
    check_product(backend, rng, form, dtype, 2, 15, 160, norm=True)


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("q8_0", "q4_1")])
@pytest.mark.parametrize("K", (1, 200))
def test_rows_off_16_bytes(backend, rng, form, K):
    check_product(backend, rng, form, "bfloat16", 1 + K % 3, 45, K, norm=K % 2 == 1)


@pytest.mark.parametrize(
    "tile",
    [
        Tile(256, 256, 4, 2),
        Tile(128, 32, 8, 1),
        Tile(64, 4, 2, 4),
        Tile(192, 96, 2, 3),
        Tile(32, 8, 4, 0),
    ],
    ids=str,
)
def test_tiles(backend, rng, tile):
    check_product(backend, rng, "bfloat16", "bfloat16", 1, 61, 2136, tile=tile)
    check_product(backend, rng, "int8", "bfloat16", 2, 61, 1072, norm=True, tile=tile)


@pytest.mark.parametrize("form", FORMS)
def test_large_tile(backend, rng, form):
    check_product(backend, rng, form, "bfloat16", 1, 37, 1056, norm=True, tile=LARGE)


@pytest.mark.parametrize("decode", ("shift", "builtin", "half"))
def test_ways_to_read_int8(backend, rng, decode):
    check_product(backend, rng, "int8", "float32", 1, 13, 160, tile=Tile(32, 8, 4, 1, decode))


@pytest.mark.parametrize("form", FORMS)
def test_bare(rng, form):
    """Without subgroups, packed dot products, immediates, f16."""
    with strict_wgpu(**BARE) as bare:
        check_product(bare, rng, form, "bfloat16", 1, 21, 96, norm=True)


def test_weights_larger_than_a_binding(rng):
    with strict_wgpu(binding_bytes=16384) as small:
        for form in ("bfloat16", "int8", "q8_0", "w8a8"):
            check_product(small, rng, form, "bfloat16", 2, 301, 96)
        check_gated(small, rng, "bfloat16", "silu", 1, 150, 96)


def test_views(backend, rng):
    """x and weights that begin off a 16-byte border."""
    x = rng.standard_normal((1, 65)).astype(BF16)
    w = rng.standard_normal((41, 64)).astype(BF16)
    flat = Tensor(np.concatenate([np.zeros(1, BF16), w.ravel()]), backend=backend)
    y = gemv.gemv(backend, Tensor(x, backend=backend)[:, 1:].data, flat[1:].reshape(41, 64))
    reference = x[:, 1:].astype(np.float64) @ w.astype(np.float64).T
    close(backend, y, reference, "bfloat16", "", 64, 1.0)


@pytest.mark.parametrize("form", ("bfloat16", "int8-g64"))
@pytest.mark.parametrize("M", (1, 2))
def test_combine(backend, rng, form, M):
    H, S, D, N = 6, 5, 32, 77
    part = rng.standard_normal((M, H, S, D)).astype(np.float32)
    m, total = rng.standard_normal((M, H, S)), rng.random((M, H, S)) + 0.1
    part[:, :, 3], m[:, :, 3], total[:, :, 3] = np.nan, -3e38, 0  # an empty split
    m[0, 0, 1:], total[0, 0, 1:] = -3e38, 0
    partials = np.concatenate([part, np.stack([m, total, m, m], -1)], -1).astype(np.float32)
    w, values = weight(backend, rng, form, N, H * D)
    residual = rng.standard_normal((M, N)).astype(BF16)
    y = gemv.combine_gemv(
        backend, up(backend, partials), w, dtype=BF16, residual=up(backend, residual)
    )
    e = np.exp2(np.maximum(partials[..., D].astype(np.float64), -1000))
    parts = np.where(total[..., None] > 0, part, 0) * e[..., None]
    h = (parts.sum(2) / (e * total).sum(-1)[..., None]).reshape(M, -1)
    reference = h @ values.T + residual.astype(np.float64)
    close(backend, y, reference, "bfloat16", form, H * D, rms(h) * rms(values), WIDE_C)


def check_gated(backend, rng, form, act, M, F, K, tile=None):
    x, norm = rng.standard_normal((M, K)).astype(BF16), rng.random(K).astype(np.float32)
    (g, gate), (u, upper) = (weight(backend, rng, form, F, K) for _ in range(2))
    bias = rng.standard_normal(F).astype(BF16)
    y = gemv.norm_gated_gemv(
        backend, up(backend, x), gemv.Norm(up(backend, norm), EPS), g, u, act=act,
        gate_bias=up(backend, bias) if M == 3 else None, tile=tile,
    )  # fmt: skip
    h = seen(normed(x, norm), form)
    left = h @ gate.T + (bias.astype(np.float64) if M == 3 else 0)
    if act == "silu":
        left = oracles.silu(left)
    else:
        left = oracles.gelu(left, "none" if act == "gelu" else "tanh")
    right = h @ upper.T
    scale = rms(h) * rms(gate) * (1 + np.sqrt(K) * rms(h) * rms(upper))
    close(backend, y, left * right, "bfloat16", form, K, scale, WIDE_C)


@pytest.mark.parametrize(
    ("form", "act"),
    [*((form, "silu") for form in FORMS), ("bfloat16", "gelu"), ("bfloat16", "gelu_tanh")],
)
def test_gated(backend, rng, form, act):
    check_gated(backend, rng, form, act, 3 if form == "bfloat16" else 1, 27, 96)


def test_gated_by_a_large_tile(backend, rng):
    check_gated(backend, rng, "bfloat16", "silu", 1, 27, 1056, LARGE)
    check_gated(backend, rng, "int8", "silu", 2, 27, 1056, Tile(256, 32, 8, 1))


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


def check_qkv(
    backend, rng, form, M, H, KH, D, R, K, *, interleaved, cached=True, together=False,
    head_norm=False, tile=None,
):  # fmt: skip
    x, norm = rng.standard_normal((M, K)).astype(BF16), rng.random(K).astype(np.float32)
    weights = [weight(backend, rng, form, n * D, K) for n in (H, KH, KH)]
    given = tuple(w for w, _ in weights)
    if together:
        whole, values = weight(backend, rng, form, (H + 2 * KH) * D, K)
        ends = [0, H * D, (H + KH) * D, (H + 2 * KH) * D]
        given = tuple(rows(whole, a, b) for a, b in itertools.pairwise(ends))
        weights = [(None, values[a:b]) for a, b in itertools.pairwise(ends)]
    biases = [rng.standard_normal(n * D).astype(BF16) for n in (H, KH, KH)]
    cos, sin = (rng.standard_normal((50, R // 2)).astype(np.float32) for _ in range(2))
    places = rng.integers(0, 50, M).astype(np.int32)
    slots = rng.permutation(28)[:M].astype(np.int32)
    slots[1:2] = -1
    caches = [rng.standard_normal((7, 4, KH, D)).astype(BF16) for _ in range(2)]
    k_cache, v_cache = up(backend, *caches)
    own = (rng.random((2, D)) + 0.5).astype(np.float32)
    norms = gemv_qkv.Norms(*up(backend, *own), EPS) if head_norm else None
    if head_norm:
        biases = [np.zeros_like(b) for b in biases]
    given_biases = (None,) * 3 if head_norm else tuple(up(backend, *biases))
    rope = gemv_qkv.Rope(*up(backend, cos, sin, places), interleaved)
    cache = gemv_qkv.Cache(k_cache, v_cache, up(backend, slots)) if cached else None
    q, k, v = gemv_qkv.qkv_rope(
        backend, up(backend, x), gemv.Norm(up(backend, norm), EPS), given, rope, D, cache=cache,
        biases=given_biases, head_norm=norms, tile=tile,
    )  # fmt: skip
    h, made = seen(normed(x, norm), form), []
    for i, (_, values) in enumerate(weights):
        y = (h @ values.T + biases[i].astype(np.float64)).reshape(M, -1, D)
        if head_norm and i < 2:
            y = y / np.sqrt((y * y).mean(-1, keepdims=True) + EPS) * own[i]
        made.append(rotated(y, cos[places], sin[places], interleaved) if i < 2 else y)
    scale = max(map(rms, made)) / np.sqrt(K)
    close(backend, q, made[0], "bfloat16", form, K, scale, WIDE_C, "q")
    for new, before, after, alone in zip(made[1:], caches, (k_cache, v_cache), (k, v), strict=True):
        if cached:
            new = oracles.kv_write(before.astype(np.float64), new, slots)
        target = after if cached else alone
        close(backend, target, new, "bfloat16", form, K, scale, WIDE_C, "cache")


def rows(w, start, stop):
    if isinstance(w, Tensor):
        return w[start:stop]
    parts = {name: part[start:stop] for name, part in w.parts.items()}
    return QuantizedTensor(w.scheme, (stop - start, w.shape[1]), parts)


@pytest.mark.parametrize("form", FORMS)
def test_qkv(backend, rng, form):
    for together in (False, True):
        check_qkv(backend, rng, form, 2, 3, 1, 16, 16, 96, interleaved=False, together=together)


@pytest.mark.parametrize("form", ("bfloat16", "int8", "q4_1"))
@pytest.mark.parametrize("interleaved", (False, True))
def test_qkv_with_partial_rotary(backend, rng, form, interleaved):
    check_qkv(backend, rng, form, 5, 4, 2, 12, 8, 96, interleaved=interleaved)


@pytest.mark.parametrize("together", (False, True))
def test_qkv_with_head_norms(backend, rng, together):
    for M, cached in ((1, True), (3, False)):
        check_qkv(
            backend, rng, "bfloat16", M, 4, 2, 64, 48, 96, interleaved=cached, cached=cached,
            together=together, head_norm=True,
        )  # fmt: skip


def test_qkv_without_a_cache_by_a_large_tile(backend, rng):
    for tile in (LARGE, Tile(256, 32, 8, 1)):
        check_qkv(
            backend, rng, "bfloat16", 2, 4, 2, 32, 32, 1056, interleaved=False, cached=False,
            tile=tile, together=True,
        )  # fmt: skip


def test_rows_to_int8(backend, rng):
    for name, M, K in (("float32", 3, 33), ("bfloat16", 1, 96)):
        x = rng.standard_normal((M, K)).astype(FLOATS[name])
        x[M // 2] = 0 if M > 1 else x[0]
        values, scales = quantized_rows(backend, up(backend, x))
        got, (q, s) = backend.to_numpy(values), oracles.quantize_int8(x)
        assert np.array_equal(got[:, :K], q) and not got[:, K:].any()
        assert np.array_equal(backend.to_numpy(scales), s[:, 0])
