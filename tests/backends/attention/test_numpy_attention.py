"""The CPU's attention kernels against the oracle, strictly: edge table, paged, captured."""

import numpy as np
import oracles
import oracles_kv
import pytest
from draws import normal, tensors
from ops import paged_cases
from ops.attention_cases import CASES, SMALL, Case, close, draw

from boostr import Tensor, backends, capture, dispatch, ops
from boostr.operands import PackedKV
from boostr.quant.kv import KV_FORMS

pytest.importorskip("numba")
from boostr.backends.numpy.runtime import threads

# More than the common table has: both kernels' tiles and steps, and their remainders.
TILES = [
    Case("odd-everything", (67, 5, 130), (131, 64, 190), H=7, K=1, D=5, Dv=7,
         options={"causal": True}),
    Case("many-blocks", (150, 0, 33), (200, 3, 257), H=9, K=3, D=64, options={"causal": True}),
    Case("window-over-tiles", (300, 1), (300, 129), H=4, K=4, D=20,
         options={"causal": True, "window": (90, None)}),
    Case("wide-values", (40, 65), (40, 65), H=8, K=1, D=96, Dv=256, options={"window": (70, 3)}),
]  # fmt: skip
BLOCK_SIZES = (1, 3, 16, 512)


@pytest.fixture(params=(1, 2), autouse=True)
def pool(request, monkeypatch):
    made = threads.Pool(request.param)
    monkeypatch.setattr(threads, "_pool", made)
    with dispatch.strict():
        yield made
    made.close()


@pytest.fixture
def numpy_backend():
    return backends.get("numpy")


def placed(backend, options):
    return {
        name: Tensor(value, backend=backend) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def paged(rng, k, v, case, size, columns):
    """Caches, block table and kv_lens with the case's keys in blocks of `size` anywhere."""
    B, NB = len(case.len_k), len(case.len_k) * columns + 2
    caches = [normal(rng, (NB, size, *x.shape[1:])) for x in (k, v)]
    table = rng.permutation(NB)[: B * columns].reshape(B, columns).astype(np.int32)
    cu = case.cu_seqlens_k
    for b in range(B):
        for j in range(case.len_k[b]):
            for cache, x in zip(caches, (k, v), strict=True):
                cache[table[b, j // size % columns], j % size] = x[cu[b] + j]
    return *caches, table, np.array(case.len_k, np.int32)


def run_paged(backend, rng, case, size, columns=None):
    q, k, v = draw(rng, case, "float32")
    columns = columns or max(1, -(-max(case.len_k) // size))
    k_cache, v_cache, table, lens = paged(rng, k, v, case, size, columns)
    cu = case.cu_seqlens_q
    options = {"causal": False, **case.options}
    got = ops.paged_attention(
        *tensors(backend, q, k_cache, v_cache, cu, table, lens), **placed(backend, options)
    )
    want = oracles.paged_attention(q, k_cache, v_cache, cu, table, lens, **case.options)
    close(got, want, q, k, v, "float32", case.options)


@pytest.mark.parametrize("case", [*CASES, *TILES], ids=lambda c: c.name)
def test_varlen(case, numpy_backend, rng):
    q, k, v = draw(rng, case, "float32")
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    got = ops.varlen_attention(
        *tensors(numpy_backend, q, k, v, *lengths), **placed(numpy_backend, case.options)
    )
    want = oracles.varlen_attention(q, k, v, *lengths, **case.options)
    close(got, want, q, k, v, "float32", case.options)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("case", [*SMALL, *TILES], ids=lambda c: c.name)
def test_paged(case, size, numpy_backend, rng):
    run_paged(numpy_backend, rng, case, size)


@pytest.mark.parametrize("D", (1, 5, 64, 80, 96, 128, 256))
@pytest.mark.parametrize(("H", "K"), ((4, 4), (8, 2), (7, 1), (8, 1)))
def test_decode_rows(D, H, K, numpy_backend, rng):
    case = Case("rows", (1, 1, 1, 1), (1, 33, 200, 64), H=H, K=K, D=D, options={"causal": True})
    run_paged(numpy_backend, rng, case, 16)


@pytest.mark.parametrize("form", KV_FORMS)
@pytest.mark.parametrize("case", [
    Case("rows", (1, 1, 1, 1), (1, 33, 200, 64), H=8, K=2, D=96, options={"causal": True}),
    Case("blocks", (67, 5, 130), (131, 64, 190), H=6, K=3, D=64, Dv=32, options={"causal": True}),
], ids=lambda c: c.name)  # fmt: skip
def test_packed(case, form, numpy_backend, rng):
    """In blocks of a few tokens; the columns that no sequence needs have no block."""
    q, k, v = draw(rng, case, "float32")
    k_cache, v_cache, table, lens = paged(rng, k, v, case, 5, 41)
    planes = [oracles_kv.packed(c, form) for c in (k_cache, v_cache)]
    table[:, 40] = -1
    x, *rest = tensors(numpy_backend, q, case.cu_seqlens_q, table, lens)
    caches = (PackedKV(*tensors(numpy_backend, *p)) for p in planes)
    got = ops.paged_attention(x, *caches, *rest)
    truth = [oracles_kv.numbers(*p) for p in planes]
    want = oracles.paged_attention(q, *truth, case.cu_seqlens_q, table, lens, **case.options)
    close(got, want, q, k, v, "float32", case.options)


@pytest.mark.parametrize("len_q", ((1, 1), (30, 40)), ids=("rows", "blocks"))
@pytest.mark.parametrize("size", (1, 3, 16))
def test_ring_wraps(len_q, size, numpy_backend, rng):
    """A table that is shorter than the sequence: the window hides what was overwritten."""
    case = Case("ring", len_q, (250, 90), H=4, K=2, D=24,
                options={"causal": True, "window": (20, None)})  # fmt: skip
    run_paged(numpy_backend, rng, case, size, columns=-(-64 // size))


@pytest.mark.parametrize("form", [None, *KV_FORMS])
@pytest.mark.parametrize("columns", [None, 130])
@pytest.mark.parametrize("name", paged_cases.ENDED)
def test_ended_sequences(name, columns, form, numpy_backend, rng):
    shape, options = (4, 2, 64), {"dtype": "float32", "columns": columns, "holes": 0.2, "extra": 2}
    if form is None:
        arrays, finite = paged_cases.ended(rng, name, *shape, **options)
        caches = tensors(numpy_backend, *arrays[1:3])
    else:
        arrays, planes, finite = paged_cases.ended_packed(rng, name, form, *shape, **options)
        caches = [PackedKV(*tensors(numpy_backend, *p)) for p in planes]
    q, *rest = tensors(numpy_backend, arrays[0], *arrays[3:])
    paged_cases.compare(ops.paged_attention(q, *caches, *rest), arrays, {}, like=finite)


@pytest.mark.parametrize("len_q", ((1, 1), (30, 40)), ids=("rows", "blocks"))
def test_blocks_that_are_not_there(len_q, numpy_backend, rng):
    """A negative entry of the table, outside of the window: its keys do not exist."""
    case = Case("holes", len_q, (100, 90), H=4, K=2, D=24,
                options={"causal": True, "window": (16, None)})  # fmt: skip
    q, k, v = draw(rng, case, "float32")
    k_cache, v_cache, table, lens = paged(rng, k, v, case, 16, 7)
    table[:, :1] = -1
    args = q, k_cache, v_cache, case.cu_seqlens_q, table, lens
    got = ops.paged_attention(*tensors(numpy_backend, *args), window=(16, None))
    want = oracles.paged_attention(*args, **case.options)
    close(got, want, q, k, v, "float32", case.options)


@pytest.mark.parametrize("len_q", ((1, 1, 1), (40, 1, 60)), ids=("rows", "blocks"))
def test_captured_lengths_may_change(len_q, numpy_backend, rng):
    """A program replays with other kv_lens, table and cu_seqlens of the same shapes."""
    case = Case("captured", len_q, (130, 70, 260), H=6, K=2, D=40, options={"causal": True})
    q, k, v = draw(rng, case, "float32")
    k_cache, v_cache, table, lens = paged(rng, k, v, case, 16, 17)
    args = tensors(numpy_backend, q, k_cache, v_cache, case.cu_seqlens_q, table, lens)
    program = capture(lambda: ops.paged_attention(*args), numpy_backend)
    assert all("numpy" not in line for line in program.describe())
    for changed in ((130, 70, 260), (131, 200, 61), (272, 1, 100)):
        args[4].data[...] = rng.permutation(table.flatten()).reshape(table.shape)
        args[5].data[...] = changed
        program.run()
        now = [t.numpy() for t in args]
        want = oracles.paged_attention(*now, causal=True)
        close(program.outputs, want, q, k, v, "float32", case.options)


def test_strided_heads(numpy_backend, rng):
    """q, k and v as slices of one product, which are read where they lie."""
    case = Case("strided", (50, 20), (50, 20), H=4, K=2, D=16, options={"causal": True})
    fused = normal(rng, (70, 8, 16))
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    got = ops.varlen_attention(*tensors(numpy_backend, q, k, v, *lengths), causal=True)
    want = oracles.varlen_attention(q, k, v, *lengths, causal=True)
    close(got, want, q, k, v, "float32", case.options)
