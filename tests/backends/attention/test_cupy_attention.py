"""CUDA's attention kernels against the oracle, strictly: every width, dtype, option and layout.

Each case runs through whatever `attention.py` picks for it, and through the kernels of that module
alone (mma.sync and SIMT), which would otherwise hide behind the specialists.
"""

from dataclasses import replace

import numpy as np
import oracles
import pytest
from draws import normal, tensors
from ops.attention_cases import CASES, SINKS, SLOPES, Case, close, draw

from boostr import Tensor, capture, dispatch
from boostr.backends.cupy.attention import attention
from boostr.ops.attention import paged_attention, varlen_attention

RAGGED = (1, 200, 0, 333, 64, 129), (1, 200, 0, 333, 64, 129)
UNEQUAL = (64, 5, 130, 0, 300, 7), (131, 640, 190, 9, 20, 0)
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "top-left": {"causal": True, "causal_alignment": "top-left"},
    "window": {"causal": True, "window": (90, 0)},
    "band": {"window": (70, 130), "sinks": SINKS},
    "softcap": {"causal": True, "softcap": 15.0},
    "alibi": {"causal": True, "alibi_slopes": SLOPES, "sinks": SINKS},
}
WIDTHS = (8, 32, 64, 72, 80, 96, 128, 192, 256)


@pytest.fixture(params=("routed", "own"), autouse=True)
def route(request, monkeypatch):
    if request.param == "own":
        monkeypatch.setattr(attention, "_specialist", lambda *args: None)
    return request.param


def placed(backend, options):
    return {
        name: Tensor(value, backend=backend) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def check(backend, case, dtype, rng):
    q, k, v = draw(rng, case, dtype)
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    got = varlen_attention(*tensors(backend, q, k, v, *lengths), **placed(backend, case.options))
    assert got[0].dtype.name == dtype
    want = oracles.varlen_attention(q, k, v, *lengths, **case.options)
    close(got, want, q, k, v, dtype, case.options, lengths)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_edge_table(case, dtype, cupy_backend, rng):
    check(cupy_backend, case, dtype, rng)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("D", WIDTHS)
def test_widths(D, options, dtype, cupy_backend, rng):
    if dtype == "float16" and options not in ("causal", "band"):
        pytest.skip("bfloat16 runs the same code")
    check(cupy_backend, Case("", *RAGGED, D=D, options=OPTIONS[options]), dtype, rng)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("D", [64, 128])
def test_unequal_lengths(D, options, cupy_backend, rng):
    check(cupy_backend, Case("", *UNEQUAL, D=D, options=OPTIONS[options]), "bfloat16", rng)


def test_many_segments(cupy_backend, rng):
    """More segments than a warp has lanes, and tokens that are in none."""
    lengths = tuple(int(n) for n in rng.integers(0, 90, 1200))
    case = Case("", lengths, lengths, H=2, K=1, D=64, extra=300, options={"causal": True})
    check(cupy_backend, case, "bfloat16", rng)


def test_long(cupy_backend, rng):
    case = Case("", (130, 64), (9000, 5000), H=4, K=1, D=128, options={"causal": True})
    check(cupy_backend, case, "bfloat16", rng)


@pytest.mark.parametrize(("D", "Dv"), [(64, 128), (128, 64), (96, 24), (192, 128), (16, 512)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_unequal_widths(D, Dv, dtype, cupy_backend, rng):
    check(cupy_backend, Case("", *RAGGED, D=D, Dv=Dv, options={"causal": True}), dtype, rng)


def test_fused_projection(cupy_backend, rng):
    """Thirds of a projection, aligned and (one element further on) not."""
    H, K, D, case = 4, 2, 64, Case("", *RAGGED)
    T = sum(case.len_q)
    for shift in (0, 1):
        fused = Tensor(normal(rng, (T, (H + 2 * K) * D + 8), "bfloat16"), backend=cupy_backend)
        q, k, v = (
            fused[:, a * D + shift : b * D + shift].reshape(T, b - a, D)
            for a, b in ((0, H), (H, H + K), (H + K, H + 2 * K))
        )
        lengths = case.cu_seqlens_q, case.cu_seqlens_k
        got = varlen_attention(q, k, v, *tensors(cupy_backend, *lengths), causal=True)
        arrays = [x.numpy() for x in (q, k, v)]
        want = oracles.varlen_attention(*arrays, *lengths, causal=True)
        close(got, want, *arrays, "bfloat16", {"causal": True}, lengths)


def test_captured(cupy_backend, rng):
    """One program serves other lengths: nothing in it depends on the values of cu_seqlens."""
    first = Case("", (100, 200), (100, 200), D=64, options={"causal": True})
    q, k, v = draw(rng, first, "bfloat16")
    cu = Tensor(first.cu_seqlens_q, backend=cupy_backend)
    args = tensors(cupy_backend, q, k, v)
    program = capture(lambda: varlen_attention(*args, cu, cu, causal=True), cupy_backend)
    for counts in ((100, 200), (1, 299), (300, 0), (150, 20)):
        starts = Case("", counts, counts).cu_seqlens_q
        cu.assign(starts)
        got, lengths = program.run(), (starts, starts)
        want = oracles.varlen_attention(q, k, v, *lengths, causal=True)
        close(got, want, q, k, v, "bfloat16", {"causal": True}, lengths)


@pytest.mark.parametrize("options", ["causal", "window", "alibi", "band"])
@pytest.mark.parametrize("D", [64, 72, 128, 256])
def test_few_queries_of_many_keys(D, options, cupy_backend, rng, monkeypatch, route):
    """Blocks that share a tile's keys, some of them with none."""
    launch, seen = attention._mma, []
    monkeypatch.setattr(
        attention, "_mma", lambda *args: seen.append(args[1].splits) or launch(*args)
    )
    case = Case("", (40, 10, 0, 90), (3000, 700, 5, 4000), D=D, extra=3, options=OPTIONS[options])
    check(cupy_backend, case, "bfloat16", rng)
    check_paged(cupy_backend, rng, replace(case, extra=0), 48, "bfloat16")
    if route == "own" and options == "causal":
        assert len(seen) == 2 and min(seen) > 1


# -- paged -----------------------------------------------------------------------------------------
def paged(rng, k, v, case, size, columns=None, holes=False):
    """Caches, block table and kv_lens with the case's keys in blocks of `size` anywhere."""
    B = len(case.len_k)
    columns = columns or max(1, -(-max(case.len_k) // size))
    NB = B * columns + 2
    caches = [normal(rng, (NB, size, *x.shape[1:]), "float32", 100.0).astype(x.dtype)
              for x in (k, v)]  # fmt: skip
    table = rng.permutation(NB)[: B * columns].reshape(B, columns).astype(np.int32)
    cu = case.cu_seqlens_k
    for b in range(B):
        for j in range(case.len_k[b]):
            for cache, x in zip(caches, (k, v), strict=True):
                cache[table[b, j // size % columns], j % size] = x[cu[b] + j]
    if holes:
        table[rng.random(table.shape) < 0.3] = -1
    return *caches, table, np.array(case.len_k, np.int32)


def check_paged(backend, rng, case, size, dtype, columns=None, holes=False):
    q, k, v = draw(rng, case, dtype)
    k_cache, v_cache, table, kv_lens = paged(rng, k, v, case, size, columns, holes)
    args = q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens
    options = {"causal": False, **case.options}
    got = paged_attention(*tensors(backend, *args), **placed(backend, options))
    if holes:  # the oracle knows them only outside of windows, so the composite in float64
        wide = [x.astype(np.float64) if x.dtype != np.int32 else x for x in args]
        with dispatch.strict(False):
            truth = [x.numpy() for x in paged_attention(*tensors("numpy", *wide), **options)]
    elif columns:
        truth = oracles.paged_attention(*args, **options)
    else:
        truth = oracles.varlen_attention(q, k, v, args[3], case.cu_seqlens_k, **options)
    close(got, truth, q, k, v, dtype, options, (args[3], case.cu_seqlens_k))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [1, 16, 48, 64, 128, 512])
@pytest.mark.parametrize("options", ["causal", "window", "band", "softcap"])
def test_paged(options, size, dtype, cupy_backend, rng):
    lengths = (64, 5, 130, 0, 300, 7), (131, 240, 190, 9, 320, 7)
    check_paged(cupy_backend, rng, Case("", *lengths, D=64, options=OPTIONS[options]), size, dtype)


@pytest.mark.parametrize("D", [72, 96, 128, 256])
def test_paged_widths(D, cupy_backend, rng):
    for size, options in ((16, "causal"), (128, "alibi")):
        case = Case("", (64, 130, 100), (131, 190, 100), D=D, options=OPTIONS[options])
        check_paged(cupy_backend, rng, case, size, "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("size", "columns"), [(16, 14), (64, 4), (128, 2)])
def test_ring(size, columns, dtype, cupy_backend, rng):
    """Windows of 90 in rings that have been overwritten several times."""
    case = Case("", (100, 3, 64), (1000, 300, 64), D=64, options=OPTIONS["window"])
    check_paged(cupy_backend, rng, case, size, dtype, columns)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [16, 128])
def test_holes(size, dtype, cupy_backend, rng):
    """Blocks that are not there hold no keys."""
    case = Case("", (100, 33, 64), (700, 300, 264), D=64, options={"causal": True})
    check_paged(cupy_backend, rng, case, size, dtype, holes=True)


def test_mixed_dtypes(cupy_backend, rng):
    case = Case("", (64, 130), (131, 190), D=64, options={"causal": True})
    (q, _, _), (_, k, v) = draw(rng, case, "float32"), draw(rng, case, "bfloat16")
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    got = varlen_attention(*tensors(cupy_backend, q, k, v, *lengths), causal=True)
    close(got, oracles.varlen_attention(q, k, v, *lengths, causal=True), q, k, v, "float32", {})
