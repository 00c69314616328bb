"""WebGPU's attention kernels against the oracle, strictly: tiles of every class, layouts, devices.

The edge table itself runs in tests/ops/test_attention.py, with the tiles of the adapter's own kind.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import oracles
import pytest
from draws import normal, tensors, view
from ops.attention_cases import CASES, SINKS, SLOPES, Case, close, draw
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close

from boostr import Tensor, capture, dtypes
from boostr.backends.wgpu.attention import attention, attention_backward, attention_matrix
from boostr.backends.wgpu.attention.attention_plan import FAR, Call, make_plan
from boostr.errors import FallbackError
from boostr.ops.attention import paged_attention, varlen_attention
from boostr.options import attention_options

RAGGED = (1, 70, 0, 33), (1, 70, 0, 33)
UNEQUAL = (20, 5, 0, 9), (51, 3, 4, 90)
EVERYTHING = {
    "causal": True, "window": (40, 0), "softcap": 8.0, "alibi_slopes": SLOPES, "sinks": SINKS,
}  # fmt: skip
GPU = {"kind": "discrete", "subgroup_min": 0, "subgroup_max": 0}
CLASSES = {"own": {}, "gpu": GPU, "bare": {**BARE, "kind": "integrated"}}


def software(backend) -> bool:
    """Whether the adapter itself, whatever its caps say now, is the CPU."""
    return "llvmpipe" in backend.caps.name


@contextmanager
def opened(monkeypatch, **caps):
    """The backend with other caps; short texts where a CPU compiles them, as that takes seconds."""
    with strict_wgpu(**caps) as found:
        if software(found):
            for table in (attention.TILES, attention_backward.QUERIES, attention_backward.KEYS):
                for width, listed in table.items():
                    short = tuple(replace(tiles, UNROLL=1) for tiles in listed)
                    monkeypatch.setitem(table, width, short)
        for cached in (attention.choose_tiles, attention_backward.choose_tiles):
            cached.cache_clear()
        yield found
    for cached in (attention.choose_tiles, attention_backward.choose_tiles):
        cached.cache_clear()


@pytest.fixture(params=CLASSES)
def backend(request, monkeypatch):
    with opened(monkeypatch, **CLASSES[request.param]) as found:
        yield found


@pytest.fixture
def plain():
    with strict_wgpu() as found:
        yield found


def placed(backend, options):
    return {
        name: Tensor(value, backend=backend) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def check(backend, case, dtype, rng, given=None):
    """The forward pass; `given`: q, k, v as tensors, where not simply uploaded."""
    q, k, v = arrays = draw(rng, case, dtype) if given is None else [x.numpy() for x in given]
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    got = varlen_attention(
        *(given or tensors(backend, *arrays)), *tensors(backend, *lengths),
        **placed(backend, case.options),
    )  # fmt: skip
    assert got[0].dtype.name == dtype
    want = oracles.varlen_attention(q, k, v, *lengths, **case.options)
    close(got, want, q, k, v, dtype, case.options, lengths)


def check_backward(backend, case, rng):
    q, k, v = draw(rng, case, "float32")
    dout = normal(rng, (*q.shape[:2], v.shape[2]))
    inputs = tensors(backend, q, k, v)
    for x in inputs:
        x.requires_grad = True
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    options = {name: value for name, value in case.options.items() if name != "sinks"}
    out, _ = varlen_attention(*inputs, *tensors(backend, *lengths), **placed(backend, options))
    out.backward(Tensor(dout, backend=backend))
    want = oracles.varlen_attention_backward(dout, q, k, v, *lengths, **options)
    size = 8 * len(q) ** 0.5 * case.D**0.5  # as in tests/ops/test_attention.py
    for x, truth in zip(inputs, want, strict=True):
        scale = size * max(np.abs(truth).max(), 1) / case.D**0.5
        assert_close(x.grad.numpy(), truth, dtype="float32", reduce=1, scale=scale)
    return [x.grad.numpy() for x in inputs]


# -- forward ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("D", "dtype"), [(64, "float32"), (80, "float16"), (128, "bfloat16")])
def test_tiles(D, dtype, backend, rng):
    check(backend, Case("", *RAGGED, H=4, K=2, D=D, options={"causal": True}), dtype, rng)


def test_everything(backend, rng):
    check(backend, Case("", *UNEQUAL, D=24, extra=3, options=EVERYTHING), "float32", rng)


def test_widest(plain, rng):
    check(plain, Case("", (3, 20), (3, 40), H=2, K=1, D=256), "float32", rng)


@pytest.mark.parametrize(("D", "Dv"), [(16, 96), (64, 7), (5, 6)])
def test_unequal_widths(D, Dv, plain, rng):
    check(plain, Case("", *RAGGED, D=D, Dv=Dv, options={"causal": True}), "bfloat16", rng)


def test_rows_in_a_subgroup(plain, rng):
    """Threads of a row that talk through shuffles, as they do wherever a row fits a subgroup."""
    tiles = attention.choose_tiles(16, 16, plain.caps)
    if not attention.shuffles(tiles, plain.caps):
        pytest.skip(f"{plain.caps.name}: subgroups of {plain.caps.subgroup_min}")
    check(plain, Case("", *RAGGED, options={"causal": True}), "float32", rng)


def test_rows_without_subgroups(rng):
    with strict_wgpu(subgroup_min=0, subgroup_max=0) as backend:
        check(backend, Case("", *RAGGED, options={"causal": True}), "float32", rng)


@pytest.mark.parametrize("shift", [0, 1])
def test_fused_projection(shift, plain, rng):
    """Thirds of a projection, aligned and (one element further on) not."""
    H, K, D, case = 4, 2, 16, Case("", *RAGGED)
    fused = view(plain, normal(rng, (sum(case.len_q), (H + 2 * K) * D + 8), "bfloat16"))
    q, k, v = (
        fused[:, a * D + shift : b * D + shift].reshape(-1, b - a, D)
        for a, b in ((0, H), (H, H + K), (H + K, H + 2 * K))
    )
    check(plain, case, "bfloat16", rng, (q, k, v))


@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window": (30, 9), "sinks": SINKS}], ids=str
)
def test_few_queries_of_many_keys(options, plain, rng, monkeypatch):
    """Workgroups that share a tile's keys, some of them with none."""
    monkeypatch.setattr(attention, "splits_of", lambda *args: 3)
    case = Case("", (10, 3, 0, 19), (70, 9, 4, 133), extra=2, options=options)
    check(plain, case, "float32", rng)
    check_paged(plain, replace(case, extra=0), "float32", 16, rng)


@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window": (30, 9), "sinks": SINKS}], ids=str
)
@pytest.mark.parametrize(("D", "Dv"), [(64, 64), (128, 128), (80, 96), (256, 192)])
@pytest.mark.parametrize(("keys", "splits"), [(64, 1), (64, 3), (32, 1)])
def test_matrices(keys, splits, D, Dv, options, plain, rng, monkeypatch):
    """Tensor cores, packed and paged, also where logits rise late, or workgroups share keys."""
    if not plain.caps.matrices:
        pytest.skip(f"{plain.caps.name} through {plain.caps.provider} has no subgroup matrices")
    ran = []
    if D % 32 == 0 and D <= 128:
        tiles = attention_matrix.MatrixTiles(BN=keys)
        monkeypatch.setattr(attention_matrix, "choose_tiles", lambda *args: tiles)
    monkeypatch.setattr(attention_matrix, "splits_of", lambda *args: splits)
    attend = attention_matrix.attend
    monkeypatch.setattr(attention_matrix, "attend", lambda *a: ran.append(a) or attend(*a))
    for size in (1.0, 20.0):
        case = Case("", (1, 200, 0, 90), (40, 200, 0, 333), D=D, Dv=Dv, scale_of_logits=size,
                    options=options)  # fmt: skip
        for dtype in ("float16", "bfloat16"):
            check(plain, case, dtype, rng)
            check_paged(plain, case, dtype, 48, rng)
    assert len(ran) == 8


def test_matrices_beyond_their_range(plain):
    """bfloat16 that no f16 can hold: the vector kernel does it again."""
    if not plain.caps.matrices:
        pytest.skip(f"{plain.caps.name} through {plain.caps.provider} has no subgroup matrices")
    q, k, v = (np.ones((70, 1, 64), dtypes.bfloat16) for _ in range(3))
    v[:, :, 0] = 1e6
    args = tensors(plain, q, k, v, *2 * [np.array([0, 70], np.int32)])
    np.testing.assert_array_equal(varlen_attention(*args)[0].numpy(), v)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keys_in_halves(dtype, plain, rng):
    """What tensor cores read of a paged cache: its rows side by side, and where it has none."""
    kind, lens = dtypes.parse(dtype), np.array([37, 90], np.int32)
    k, v = (rng.standard_normal((9, 16, 2, n)).astype(kind) for n in (16, 48))
    k[0], v[0] = np.inf, np.nan  # which nobody reads
    table = np.array([[3, 8, -1, 4], [1, 7, 2, 5]], np.int32)
    options = attention_options("", 16, True, None, None, None, "bottom-right")
    q, cu = np.zeros((2, 4, 16), kind), np.array([0, 1, 2], np.int32)
    call = Call(*tensors(plain, q, k, v, cu, lens, table), None, None, options)
    flag = None if dtype == "float16" else Tensor(np.zeros(4, np.uint32), backend=plain).data
    made = attention_matrix._halves(call, flag)
    assert made.capacity == 64 and made.there is not None
    there = plain.to_numpy(made.there)
    assert there[32] == there[36] == 0
    assert not any(plain.to_numpy(half)[32:37].any() for half in (made.k, made.v))
    for b, slot in [(0, 0), (0, 20), (1, 5), (1, 63)]:
        block, row = table[b, slot // 16], 64 * b + slot
        assert there[row] == 1
        for half, cache in ((made.k, k), (made.v, v)):
            got, wanted = plain.to_numpy(half)[row], cache[block, slot % 16]
            np.testing.assert_array_equal(got, wanted.astype(np.float16))
    if flag is not None:
        assert plain.to_numpy(flag)[0] == 0
        k[8, 3] = 1e5
        attention_matrix._halves(replace(call, k=tensors(plain, k)[0]), flag)
        assert plain.to_numpy(flag)[0] == 1


@pytest.mark.parametrize("flag", [0, 1])
def test_what_tensor_cores_could_not_do(flag, plain, rng):
    """It is done by the list of tiles that they had, and only where the flag says so."""
    q, k, v = (rng.standard_normal((70, 2, 32)).astype(np.float32) for _ in range(3))
    cu = np.array([0, 25, 70], np.int32)
    options = attention_options("", 32, True, None, None, None, "bottom-right")
    args = tensors(plain, q, k, v, cu, cu)
    call = Call(*args, None, None, None, options)
    rows = attention._tiles(call, True).rows
    per_head = (2, None, None)
    plan = make_plan(plain, rows, 70, *(x.data for x in args[3:]), (FAR, 0), True, per_head)
    out, lse = (Tensor(np.zeros(s, np.float32), backend=plain) for s in (q.shape, q.shape[:2]))
    set_to = Tensor(np.full(4, flag, np.uint32), backend=plain)
    attention.attend_into(call, [out.data, lse.data], set_to.data, plan)
    wanted, _ = varlen_attention(*args, causal=True)
    np.testing.assert_allclose(out.numpy(), wanted.numpy() * flag, atol=1e-5)


def test_many_segments(plain, rng):
    """More segments than the list's scan takes at once, and tokens that are in none."""
    lengths = tuple(int(n) for n in rng.integers(0, 4, 150))
    case = Case("", lengths, lengths, H=2, K=1, extra=30, options={"causal": True})
    check(plain, case, "float32", rng)


def test_captured(plain, rng):
    """One program serves other lengths: nothing in it depends on the values of cu_seqlens."""
    q, k, v = draw(rng, Case("", (60,), (60,)), "float32")
    cu = Tensor(np.array([0, 20, 60], np.int32), backend=plain)
    args = tensors(plain, q, k, v)
    program = capture(lambda: varlen_attention(*args, cu, cu, causal=True), plain)
    for counts in ((20, 40), (1, 59), (60, 0), (30, 10)):
        starts = Case("", counts, counts).cu_seqlens_q
        cu.assign(starts)
        want = oracles.varlen_attention(q, k, v, starts, starts, causal=True)
        close(program.run(), want, q, k, v, "float32", {"causal": True}, (starts, starts))


def test_refuses_wide_heads(plain):
    q, k, v = (Tensor(np.zeros((2, 1, 264), np.float32), backend=plain) for _ in range(3))
    cu = Tensor(np.array([0, 2], np.int32), backend=plain)
    with pytest.raises(FallbackError, match="heads of 264 and 264 columns: it takes up to 256"):
        varlen_attention(q, k, v, cu, cu)


# -- paged -----------------------------------------------------------------------------------------
def paged(rng, k, v, case, size):
    """Caches, block table and kv_lens with the case's keys in blocks of `size` anywhere."""
    B, columns = len(case.len_k), -(-max(case.len_k) // size)
    NB = B * columns + 2
    caches = [normal(rng, (NB, size, *x.shape[1:]), "float32", 100.0).astype(x.dtype)
              for x in (k, v)]  # fmt: skip
    table = rng.permutation(NB)[: B * columns].reshape(B, columns).astype(np.int32)
    for b, start in enumerate(case.cu_seqlens_k[:-1]):
        for j in range(case.len_k[b]):
            for cache, x in zip(caches, (k, v), strict=True):
                cache[table[b, j // size], j % size] = x[start + j]
    return *caches, table, np.array(case.len_k, np.int32)


def check_paged(backend, case, dtype, size, rng):
    q, k, v = draw(rng, case, dtype)
    k_cache, v_cache, table, kv_lens = paged(rng, k, v, case, size)
    args = tensors(backend, q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens)
    got = paged_attention(*args, **{"causal": False, **placed(backend, case.options)})
    lengths = case.cu_seqlens_q, case.cu_seqlens_k
    want = oracles.varlen_attention(q, k, v, *lengths, **case.options)
    close(got, want, q, k, v, dtype, case.options, lengths)


@pytest.mark.parametrize(("size", "dtype"), [(3, "float32"), (16, "bfloat16")])
def test_paged(size, dtype, plain, rng):
    case = Case("", (30, 12, 0, 40), (51, 12, 4, 90), D=64, options=EVERYTHING)
    check_paged(plain, case, dtype, size, rng)


# -- backward --------------------------------------------------------------------------------------
@pytest.mark.parametrize("D", [64])
def test_backward(D, backend, rng):
    case = Case("", (1, 40, 0, 33), (1, 70, 2, 33), D=D, options={"causal": True})
    check_backward(backend, replace(case, extra=3), rng)


def test_backward_everything(plain, rng):
    check_backward(plain, Case("", *UNEQUAL, D=24, Dv=16, options=EVERYTHING), rng)


def test_backward_widest(plain, rng):
    check_backward(plain, Case("", (3, 20), (3, 40), H=2, K=1, D=256), rng)


def test_backward_repeats(plain, rng):
    """No sum depends on the order in which workgroups come."""
    case = next(c for c in CASES if c.name == "ragged")
    first, second = (check_backward(plain, case, np.random.default_rng(5)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# -- tiles -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("caps", [attention.BARE, attention.LARGE], ids=("bare", "large"))
@pytest.mark.parametrize("D", [1, 8, 24, 64, 72, 80, 96, 100, 128, 192, 256])
def test_every_device_has_tiles(D, caps):
    for tiles, room in (
        *((attention.choose_tiles(D, D, caps, few), attention.Tiles.shared_bytes)
          for few in (False, True)),
        *((attention_backward.choose_tiles(D, D, caps, keys), attention_backward.shared_bytes)
          for keys in (False, True)),
    ):  # fmt: skip
        assert room(tiles, D, D) <= caps.workgroup_bytes
        assert tiles.threads <= caps.workgroup_threads
        assert tiles.TN * tiles.TX % tiles.BKV == 0 and min(tiles.rows, tiles.TN * tiles.TX) >= 16
        assert tiles.BK % tiles.UNROLL == 0 == tiles.BKV % tiles.UNROLL
