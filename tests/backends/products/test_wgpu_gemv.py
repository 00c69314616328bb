"""What is WGSL's own in the GEMVs: tiles, GPUs without extras, windows, q, k and v at once.

References are float64 numpy on weights that `oracles.py` decodes. Memory that nobody has written
is nan, workgroup memory too.
"""

import itertools

import ml_dtypes
import numpy as np
import oracles
import packed
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
from ops.test_schemes import ROUNDED, TOYS
from strict_wgpu import BARE, strict_wgpu
from tolerance import rms

from boostr import Tensor, dtypes
from boostr.backends.wgpu.products import gemv, gemv_qkv
from boostr.backends.wgpu.products.gemv_input import quantized_rows
from boostr.backends.wgpu.products.gemv_plan import Stored, Tile, choose, in_digits
from boostr.backends.wgpu.products.planes import form_refusal
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.wgsl import shared_bytes
from boostr.quant.forms import scheme_form
from boostr.quant.pack import pack_codes
from boostr.quant.scheme import SCHEMES

BF16 = ml_dtypes.bfloat16
LARGE = Tile(256, 64, 4, 2)


@pytest.fixture
def backend():
    with strict_wgpu() as found:
        yield found


def test_what_kernels_decode():
    """All kinds of forms (`test_schemes.py` has what they mean), and not what falls between."""
    refused = [s.name for s in (*TOYS, *ROUNDED) if form_refusal(scheme_form(s))]
    assert refused == ["int8-g8", *(s.name for s in ROUNDED)]


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


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("form", [*packed.INT8[:-1], *packed.BLOCKS])
def test_single_inputs(backend, form, dtype):
    """x is 1 at one input and 0 elsewhere, so that nothing hides a code that is off: every code of
    8 bits and of fewer, each in all of its places."""
    K, scheme = 256, SCHEMES[form]
    codes = (np.add.outer(np.arange(K), np.arange(K)) % (1 << scheme.bits)).astype(np.uint8)
    parts, want = {"codes": codes.view(np.int8)}, codes.view(np.int8).astype(np.float64)
    if scheme.bits < 8:
        parts, want = pack_codes(codes, scheme.bits), codes - float(scheme.zero)
    for name in ("scales", "supers", "offsets"):
        if name in scheme.parts:
            part = scheme.parts[name]
            few = np.resize([1, -2, 3], part.columns(K)).astype(part.dtype)
            parts[name] = np.tile(few, (K, 1))
            wide = np.repeat(few.astype(np.float64), part.inputs or K)[:K]
            want = want + wide if name == "offsets" else want * wide
    w = packed.tensor(backend, form, (K, K), {name: parts[name] for name in scheme.parts})
    for k in (0, 5, 18, 31, 100, 255):
        x = np.zeros((1, K), dtypes.parse(dtype))
        x[0, k] = 1
        got = backend.to_numpy(gemv.gemv(backend, up(backend, x), w, out_dtype=np.float32))
        np.testing.assert_allclose(got[0], want[:, k], rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_bare(rng, form):
    """Without subgroups, packed dot products, immediates, f16."""
    with strict_wgpu(**BARE) as bare:
        check_product(bare, rng, form, "bfloat16", 1, 21, 96, norm=True)


@pytest.fixture
def dot4():
    """As on GPUs whose dot products of bytes are instructions."""
    with strict_wgpu(dot4_native=True) as found:
        yield found


IN_DIGITS = ("int8", "q8_0", "int4-g128", "q4_0", "q4_1", "q5_k", "q6_k", "q2_k", "q3_k")
# batches of a team's rows; teams that share x; chunks that a thread keeps
BATCHED = (Tile(32, 8, 4, 1), Tile(64, 16, 12, 1, batch=4), Tile(32, 32, 16, 1, batch=8))


@pytest.mark.parametrize("form", IN_DIGITS)
def test_two_bytes_of_x(dot4, rng, form):
    """Blocks of x of every size."""
    check_product(dot4, rng, form, "bfloat16", 1, 21, 160, norm=True)
    K = packed.fitted(form, 160)
    w, values = weight(dot4, rng, form, 21, K)
    sizes = np.exp2(rng.integers(-30, 30, (1, K // 32, 1)))
    x = (normal(rng, (1, K // 32, 32)) * sizes).astype(BF16)
    x[0, 1] = 0
    largest = np.abs(x.astype("f8")).max(-1, keepdims=True) + 0 * x.astype("f8")
    x = x.reshape(1, K)
    y = dot4.to_numpy(gemv.gemv(dot4, up(dot4, x), w, out_dtype=np.float32))
    bound = largest.reshape(1, K) @ np.abs(values).T * 2.0**-16
    assert (np.abs(y - x.astype("f8") @ values.T) <= bound).all()


@pytest.mark.parametrize("form", ("int8", "q4_1", "q6_k", "q2_k"))
def test_batches_of_rows(dot4, rng, form):
    check_product(dot4, rng, form, "bfloat16", 1, 61, 1056, norm=True, tile=BATCHED[1])


@pytest.mark.parametrize(("form", "tile"), [*zip(("int8", "q4_0", "int8"), BATCHED, strict=True)])
def test_batches_of_everything(dot4, rng, form, tile):
    check_product(dot4, rng, form, "bfloat16", 1, 7, 288, tile=tile)
    check_product(dot4, rng, form, "bfloat16", 3, 61, 288, norm=True, tile=tile)
    check_gated(dot4, rng, form, "silu", 2, 45, 288, tile=tile)
    check_qkv(dot4, rng, form, 1, 3, 1, 16, 16, 288, interleaved=False, tile=tile)


@pytest.mark.parametrize("lanes", ((8, 32), (32, 32), (32, 64)))
@pytest.mark.parametrize("form", ("int8", "q4_k"))
def test_digits_of_x_fit(form, lanes):
    """Into the threads and the shared memory of a GPU, whatever the shape."""
    caps = Caps(
        "any", "any", "any", dot4=True, dot4_native=True, subgroup_min=lanes[0],
        subgroup_max=lanes[1], workgroup_bytes=32768,
    )  # fmt: skip
    for N, K in itertools.product((64, 2048, 28672), (768, 4096, 8192, 16384)):
        w = Stored(scheme_form(SCHEMES[form]), (), N, K, False)
        for M in (1, 4, 8):
            assert in_digits(caps, w, M) == (M <= 4 and K * M < 16384)
            if not in_digits(caps, w, M):
                continue
            tile = choose(caps, w, M, 4, True)
            assert tile.threads <= caps.workgroup_threads
            assert not tile.rows % tile.batch
            source = gemv.variant("gemv", w.form, M, tile, K=K, XS=K).source(caps)
            assert shared_bytes(source) <= caps.workgroup_bytes


@pytest.mark.parametrize("form", ("int8", "q4_1"))
def test_layer_norm_before_two_bytes_of_x(dot4, rng, form):
    K = 288
    w, values = weight(dot4, rng, form, 21, K)
    x, gain, bias = normal(rng, (1, K), "bfloat16"), rng.random(K), rng.standard_normal(K)
    gain, bias = gain.astype(np.float32), bias.astype(np.float32)
    norm = gemv.Norm(up(dot4, gain), EPS, layer=True, bias=up(dot4, bias))
    y = gemv.gemv(dot4, up(dot4, x), w, norm=norm)
    h = x.astype("f8")
    h = (h - h.mean()) / np.sqrt(h.var() + EPS) * gain + bias
    close(dot4, y, h @ values.T, "bfloat16", form, K, rms(h) * rms(values), WIDE_C)


def test_a_nan_of_x_is_not_lost(dot4, rng):
    """The largest of numbers of which one is nan may be any."""
    w, _ = weight(dot4, rng, "q4_0", 21, 96)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        x = normal(rng, (1, 96), "bfloat16")
        x[0, 40] = bad
        y = dot4.to_numpy(gemv.gemv(dot4, up(dot4, x), w, out_dtype=np.float32))
        assert not np.isfinite(y).any()


def test_weights_larger_than_a_binding(rng):
    with strict_wgpu(binding_bytes=16384) as small:
        for form in ("bfloat16", "int8", "q8_0", "w8a8", "q4_1", "q6_k"):
            check_product(small, rng, form, "bfloat16", 2, 301, 96)
        check_gated(small, rng, "bfloat16", "silu", 1, 150, 96)


@pytest.mark.parametrize("form", ("int8-g64", "q6_k"))
def test_combine_to_two_bytes(dot4, rng, form):
    for M in (1, 2):
        test_combine(dot4, rng, form, M)


@pytest.mark.parametrize(
    ("form", "M"), [("bfloat16", 1), ("int8-g64", 2), ("q8_0", 1), ("q6_k", 1), ("q6_k", 2)]
)
def test_combine(backend, rng, form, M):
    H, S, D, N = 8, 5, 32, 77
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


def test_gated_by_a_large_tile(backend, rng):
    check_gated(backend, rng, "bfloat16", "silu", 1, 27, 1056, tile=LARGE)
    check_gated(backend, rng, "int8", "silu", 2, 27, 1056, tile=Tile(256, 32, 8, 1))


def check_qkv(
    backend, rng, form, M, H, KH, D, R, K, *, interleaved, cached=True, together=False,
    head_norm=False, tile=None,
):  # fmt: skip
    K = packed.fitted(form, K)
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
    return w[start:stop] if isinstance(w, Tensor) else w.rows(start, stop)


@pytest.mark.parametrize("form", FORMS)
def test_qkv(backend, rng, form):
    for together in (False, True):
        check_qkv(backend, rng, form, 2, 3, 1, 16, 16, 96, interleaved=False, together=together)


@pytest.mark.parametrize(
    ("form", "interleaved"),
    [("bfloat16", False), ("bfloat16", True), ("int8", True), ("q4_1", False), ("q6_k", True)],
)
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
        x = normal(rng, (M, K), name)
        x[M // 2] = 0 if M > 1 else x[0]
        values, scales = quantized_rows(backend, up(backend, x))
        got, (q, s) = backend.to_numpy(values), oracles.quantize_int8(x)
        assert np.array_equal(got[:, :K], q) and not got[:, K:].any()
        assert np.array_equal(backend.to_numpy(scales), s[:, 0])
