"""The Hopper attention kernel: edges of its tiles, all its options, memory that is not its own."""

import numpy as np
import oracles
import pytest
from draws import normal
from ops.attention_cases import CASES

from boostr import Tensor
from boostr.backends.cupy.attention import attention_sm90 as sm90
from boostr.ops.attention import varlen_attention
from boostr.options import AttentionOptions

RAGGED = (17, 1, 33, 0, 129, 400)
WIDTHS = pytest.mark.parametrize("D", [64, 128])


@pytest.fixture(params=["few", "many"])
def hopper(request, cupy_backend, monkeypatch):
    """The backend, with the tiles for few work items and with those for many."""
    if cupy_backend.caps.compute_capability != 90:
        pytest.skip(f"compute capability {cupy_backend.caps.compute_capability} is not 90")
    tiles, few = sm90.tiles, request.param == "few"
    monkeypatch.setattr(sm90, "tiles", lambda D, flags, _: tiles(D, flags, few))
    return cupy_backend


def packed(lengths) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.int32)


def attend(backend, q, k, v, cu_q, cu_k, **options):
    """Through the op, after making sure that this kernel is the one that serves it."""
    tensors = [Tensor(x, backend=backend) for x in (q, k, v, cu_q, cu_k)]
    options = {
        name: Tensor(x, backend=backend) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    plain = type("Options", (), {"scale": options.get("scale", 1.0)})
    assert sm90.supports(*tensors, None, None, plain) is None
    return varlen_attention(*tensors, **options)


def agree(backend, rng, D, len_q, len_k, dtype="bfloat16", H=4, K=2, extra=0, **options):
    q = normal(rng, (sum(len_q) + extra, H, D), dtype)
    k, v = (normal(rng, (sum(len_k) + extra, K, D), dtype) for _ in range(2))
    cu_q, cu_k = packed(len_q), packed(len_k)
    got = attend(backend, q, k, v, cu_q, cu_k, **options)
    want = oracles.varlen_attention(q, k, v, cu_q, cu_k, **options)
    near(got, want, v, dtype)


def near(got, want, v, dtype):
    """Probabilities and the result round to the dtype, by half of eps; lse is float32."""
    out, lse = (x.numpy().astype(np.float64) for x in got)
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    most = np.abs(v.astype(np.float64)).max(initial=0)
    assert np.all(np.abs(out - want[0]) <= 1.01 * half * (np.abs(want[0]) + most))
    np.testing.assert_allclose(lse, want[1], rtol=2e-5, atol=5e-5)


# -- the edge table, at the widths that the kernel has -------------------------------------------
@WIDTHS
@pytest.mark.parametrize("case", [c for c in CASES if c.D == 16 and not c.Dv], ids=lambda c: c.name)
def test_edges(case, D, hopper, rng, dtype="bfloat16"):
    if sum(case.len_q) + case.extra == 0 or sum(case.len_k) + case.extra == 0:
        pytest.skip("nothing to attend: refused")
    options = {"scale": 4.0 / D, **case.options}
    q = normal(rng, (sum(case.len_q) + case.extra, case.H, D), dtype, case.scale_of_logits)
    k, v = (normal(rng, (sum(case.len_k) + case.extra, case.K, D), dtype) for _ in range(2))
    got = attend(hopper, q, k, v, case.cu_seqlens_q, case.cu_seqlens_k, **options)
    want = oracles.varlen_attention(q, k, v, case.cu_seqlens_q, case.cu_seqlens_k, **options)
    near(got, want, v, dtype)


# -- tiles ---------------------------------------------------------------------------------------
@WIDTHS
@pytest.mark.parametrize(
    "length", [63, 64, 65, 79, 80, 127, 128, 129, 160, 161, 192, 193, 256, 385]
)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths_off_the_tile(length, causal, D, hopper, rng):
    agree(hopper, rng, D, (length,), (length,), H=2, K=1, causal=causal)


@WIDTHS
@pytest.mark.parametrize("window", [None, (64, 0), (100, 37), (0, 0), (None, 200), (150, None)])
def test_windows(window, D, hopper, rng):
    agree(hopper, rng, D, RAGGED, RAGGED, window=window)


@WIDTHS
@pytest.mark.parametrize("causal", [False, True])
def test_float16(causal, D, hopper, rng):
    agree(hopper, rng, D, RAGGED, RAGGED, "float16", causal=causal)


@WIDTHS
@pytest.mark.parametrize("alignment", ["bottom-right", "top-left"])
def test_unequal_lengths(alignment, D, hopper, rng):
    agree(hopper, rng, D, (4, 300, 0, 9), (20, 70, 6, 700), causal=True,
          causal_alignment=alignment)  # fmt: skip


@WIDTHS
def test_many_segments(D, hopper, rng):
    """More than the search takes in one round, and than the plan takes in one go."""
    lengths = rng.integers(0, 5, 1100)
    agree(hopper, rng, D, lengths, lengths, H=2, K=1, causal=True)


@WIDTHS
@pytest.mark.parametrize("consumers", [1, 2, 3])
def test_consumers(consumers, D, hopper, rng):
    """Other numbers of warpgroups, with and without turns, one and two buffers of queries."""
    tile_n = 80 if D == 128 and consumers == 3 else 128
    q, k, v = (normal(rng, (580, heads, D), "bfloat16") for heads in (4, 2, 2))
    cu = packed(RAGGED)
    want = oracles.varlen_attention(q, k, v, cu, cu, causal=True)
    options = AttentionOptions(True, -1, 0, D**-0.5, 0.0, True)
    tensors = [Tensor(x, backend=hopper) for x in (q, k, v, cu, cu)]
    for turns, buffers in ((0, 1), (0, 2), (1, 2)):
        tile = {"TILE_N": tile_n, "CONSUMERS": consumers, "STAGES": 2, "Q_BUFFERS": buffers,
                "PINGPONG": turns}  # fmt: skip
        near(sm90._attend(*tensors, None, None, None, options, tile), want, v, "bfloat16")


@WIDTHS
@pytest.mark.parametrize("heads", [(1, 1), (8, 1), (7, 1), (12, 4)])
def test_heads(heads, D, hopper, rng):
    agree(hopper, rng, D, RAGGED, RAGGED, H=heads[0], K=heads[1], causal=True)


# -- memory --------------------------------------------------------------------------------------
@WIDTHS
@pytest.mark.parametrize("causal", [False, True])
def test_neighbours_do_not_leak(causal, D, hopper, rng):
    """Infinite values and NaN keys of one segment, and of tokens in none, stay there."""
    cu = packed((100, 200, 77))
    q, k, v = (normal(rng, (420, 4, D), "bfloat16") for _ in range(3))
    clean = attend(hopper, q, k, v, cu, cu, causal=causal)
    k[100:300], v[100:300], k[377:], v[377:] = np.nan, np.inf, np.nan, np.nan
    dirty = attend(hopper, q, k, v, cu, cu, causal=causal)
    rows = np.r_[0:100, 300:420]
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a.numpy()[rows], b.numpy()[rows])


@WIDTHS
def test_thirds_of_a_projection(D, hopper, rng):
    """Strided views are read as they lie; unaligned ones are copied."""
    fused = Tensor(normal(rng, (200, 12 * D + 8), "bfloat16"), backend=hopper)
    cu = Tensor(packed((150, 50)), backend=hopper)
    for shift in (0, 1):
        part = fused[:, shift : shift + 12 * D].reshape(200, 12, D)
        q, k, v = part[:, :4], part[:, 4:8], part[:, 8:]
        dense = (Tensor(x.numpy(), backend=hopper) for x in (q, k, v))
        want = varlen_attention(*dense, cu, cu, causal=True)
        got = varlen_attention(q, k, v, cu, cu, causal=True)
        np.testing.assert_array_equal(got[0].numpy(), want[0].numpy())


@WIDTHS
@pytest.mark.parametrize("bs", [128, 256])
@pytest.mark.parametrize("options", [{}, {"window": (90, 0)}, {"causal": False}])
def test_paged(bs, options, D, hopper, rng):
    """Blocks in any order; what no sequence owns is NaN."""
    len_q, len_k, columns = (5, 300, 77), (500, 300, 129), 512 // bs
    caches = [normal(rng, (16, bs, 2, D), "bfloat16") for _ in range(2)]
    table = rng.permutation(16)[: 3 * columns].reshape(3, columns).astype(np.int32)
    kv_lens = np.array(len_k, np.int32)
    for cache in caches:
        owned = np.zeros(cache.shape[:2], bool)
        for row, n in zip(table, len_k, strict=True):
            owned[row[np.arange(n) // bs], np.arange(n) % bs] = True
        cache[~owned] = np.nan
    q, cu = normal(rng, (sum(len_q), 4, D), "bfloat16"), packed(len_q)
    tensors = [Tensor(x, backend=hopper) for x in (q, *caches, cu, table, kv_lens)]
    left, _ = options.get("window", (-1, 0))
    causal = options.get("causal", True)
    call = *tensors, None, None, AttentionOptions(causal, left, -1, D**-0.5, 0.0, True)
    assert sm90.paged_supports(*call) is None
    got = sm90.paged_run(*call)
    finite = [np.nan_to_num(c.astype(np.float32)) for c in caches]
    want = oracles.paged_attention(q, *finite, cu, table, kv_lens, **{"causal": True, **options})
    near(got, want, finite[1], "bfloat16")


def test_refusals(hopper, rng):
    """It says what it cannot do."""
    cu = Tensor(packed((4,)), backend=hopper)
    options = type("Options", (), {"scale": 1.0})
    for dtype, D, words in (("float32", 64, "float32"), ("bfloat16", 96, "head_dim 96")):
        x = Tensor(normal(rng, (4, 2, D), dtype), backend=hopper)
        assert words in sm90.supports(x, x, x, cu, cu, None, None, options)
