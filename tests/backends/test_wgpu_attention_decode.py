"""The split-KV kernel of few queries per sequence in WGSL, with memory poisoned."""

import numpy as np
import pytest
from draws import normal, tensors
from ops.attention_cases import CASES, close, draw
from ops.paged_cases import build, compare, reference
from ops.test_attention import oracle, paged
from strict_wgpu import BARE, strict_wgpu

from boostr import Tensor
from boostr.backends.wgpu import attention_decode as decode
from boostr.backends.wgpu.kernels import Variant
from boostr.ops.attention import attention_options, paged_attention
from boostr.program import capture

# as on a discrete GPU, as far as an adapter of 4 lanes can do it
BIG = {"threads": 256, "splits": 5, "unroll": 4, "rows": 4}


@pytest.fixture
def wgpu():
    with strict_wgpu() as backend:
        yield backend


def arguments(backend, inputs, options):
    """All that the op gives to its kernel."""
    q = inputs[0]
    options = {"causal": True, "causal_alignment": "bottom-right", **options}
    alibi, sinks = tensors(backend, *(options.get(n) for n in ("alibi_slopes", "sinks")))
    numbers = attention_options(
        "test", q.shape[2], options["causal"], options.get("window"), options.get("scale"),
        options.get("softcap"), options["causal_alignment"],
    )  # fmt: skip
    return *inputs, alibi, sinks, numbers


def attend(backend, arrays, options, **chosen):
    return attend_tensors(backend, tensors(backend, *arrays), options, **chosen)


def attend_tensors(backend, inputs, options, **chosen):
    """The kernel itself, whatever the number of queries."""
    args = arguments(backend, inputs, options)
    reason = decode.supports(*args)
    assert reason is None or "queries of" in reason, reason
    return decode.attend(*args, **chosen)


# -- the edge table of attention ------------------------------------------------------------------
# heads and dims, of which each is a source of its own, are varied below
@pytest.mark.parametrize("case", [c for c in CASES if c.D == 16 and c.H == 4], ids=lambda c: c.name)
def test_edge_table(case, wgpu, rng):
    q, k, v = draw(rng, case, "float32")
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), case, 16)
    arrays = q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens
    got = attend(wgpu, arrays, {"causal": False, **case.options})
    close(got, oracle(q, k, v, case), q, k, v, "float32", case.options)


# -- everything else against plain float64 --------------------------------------------------------
SHAPES = [("bfloat16", 8, 2, 128), ("bfloat16", 9, 3, 64), ("float16", 4, 4, 80),
          ("float32", 16, 1, 96), ("bfloat16", 4, 2, 256)]  # fmt: skip


@pytest.mark.parametrize(("dtype", "H", "K", "D"), SHAPES)
def test_decode(dtype, H, K, D, wgpu, rng):
    """One query each, lengths from none to many, and unequal ones together."""
    lengths = [1, 0, 15, 17, 63, 64, 65, 400]
    arrays = build(rng, [1] * len(lengths), lengths, H, K, D, dtype=dtype)
    compare(attend(wgpu, arrays, {}), arrays, {})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_tile_of_a_gpu(dtype, wgpu, rng):
    arrays = build(rng, [1, 2, 1], [300, 40, 0], 8, 2, 64, dtype=dtype)
    compare(attend(wgpu, arrays, {}, **BIG), arrays, {})


def test_one_workgroup_for_all_keys(wgpu, rng):
    """As for a short cache, which is not worth a second kernel."""
    arrays = build(rng, [1, 1], [300, 40], 6, 2, 64, bs=512)
    compare(attend(wgpu, arrays, {}, splits=1, threads=512, rows=3), arrays, {})


@pytest.mark.parametrize("bs", [1, 16, 100, 1500])
def test_block_sizes(bs, wgpu, rng):
    for length in (1, 129, 300):
        arrays = build(rng, [1], [length], 8, 2, 64, bs=bs)
        compare(attend(wgpu, arrays, {}), arrays, {})


OPTIONS = {
    "bidirectional": {"causal": False},
    "window": {"window": (100, 0)},
    "both": {"window": (70, 3), "causal": False},
    "softcap": {"softcap": 3.0},
    "alibi": {"alibi_slopes": np.linspace(0.01, 0.3, 8, dtype=np.float32)},
    "sinks": {"sinks": np.linspace(-2, 6, 8, dtype=np.float32)},
    "scale": {"scale": 0.5},
    "top-left": {"causal_alignment": "top-left"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("dtype", "splits"), [("bfloat16", 1), ("float32", 5)])
def test_options(name, dtype, splits, wgpu, rng):
    arrays = build(rng, [1, 0, 5, 8, 2], [400, 30, 133, 4, 0], 8, 2, 64, dtype=dtype, extra=3)
    compare(attend(wgpu, arrays, OPTIONS[name], splits=splits), arrays, OPTIONS[name])


@pytest.mark.parametrize("queries", [(8, 8, 8), (1, 0, 23), (40,), (0, 0, 1)])
@pytest.mark.parametrize("joined", [True, False])
def test_several_queries(queries, joined, wgpu, rng):
    arrays = build(rng, queries, [200, 31, 100][: len(queries)], 8, 2, 64)
    compare(attend(wgpu, arrays, {}, splits=1, joined=joined), arrays, {})


@pytest.mark.parametrize(("bs", "columns"), [(16, 9), (100, 1), (3, 50)])
def test_ring_and_holes(bs, columns, wgpu, rng):
    """Positions past the capacity, and blocks that are not there."""
    lengths = [90, 1000, 151, 5000]
    arrays = build(rng, [1, 2, 1, 1], lengths, 8, 2, 64, bs=bs, columns=columns, holes=0.3)
    for options in ({}, {"window": (60, 0)}):
        compare(attend(wgpu, arrays, options), arrays, options)


CHOSEN = [{"joined": False}, {"grain": 1}, {"splits": 3, "grain": 7}, {"unroll": 2}, {"lanes": 1},
          {"lanes": 2, "threads": 32, "join": 2}, {"rows": 3}, {"rows": 1, "threads": 128},
          {"subgroups": False}, {"subgroups": False, "unroll": 2, "lanes": 16}]  # fmt: skip


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_plans(chosen, wgpu, rng):
    arrays = build(rng, [1, 3, 1], [1, 300, 77], 8, 2, 64)
    compare(attend(wgpu, arrays, {}, **chosen), arrays, {})


def test_bare_gpu(rng):
    """No subgroups, no immediates, 16 KiB of shared memory."""
    with strict_wgpu(**BARE, kind="discrete") as backend:
        arrays = build(rng, [1, 3, 1], [1, 300, 77], 8, 2, 64)
        compare(attend(backend, arrays, {}), arrays, {})
        arrays = build(rng, [1], [90], 2, 1, 256, dtype="float32")
        compare(attend(backend, arrays, {}), arrays, {})


@pytest.mark.parametrize(("dtype", "cache"), [("float32", "bfloat16"), ("bfloat16", "float32"),
                                              ("float16", "bfloat16")])  # fmt: skip
def test_mixed_types(dtype, cache, wgpu, rng):
    arrays = build(rng, [1, 1], [300, 40], 8, 2, 64, dtype=dtype, cache=cache)
    compare(attend(wgpu, arrays, {}), arrays, {})


@pytest.mark.parametrize(("D", "Dv", "dtype"), [
    (72, 40, "bfloat16"), (20, 12, "float32"), (7, 5, "bfloat16"), (8, 6, "float16"),
    (256, 64, "bfloat16"), (16, 248, "float32"),
])  # fmt: skip
def test_odd_dims(D, Dv, dtype, wgpu, rng):
    arrays = build(rng, [1, 2], [200, 40], 6, 2, D, Dv=Dv, dtype=dtype)
    for joined in (True, False):
        compare(attend(wgpu, arrays, {}, splits=1, joined=joined), arrays, {})


def test_views(wgpu, rng):
    """q within a fused projection, keys and values side by side in one pool, an odd address."""
    arrays = build(rng, [1, 1], [300, 40], 8, 2, 64)
    q, k, v = arrays[:3]
    both = Tensor(np.stack([k, v], 2), backend=wgpu)  # [NB, bs, 2, K, D]
    shape = k.shape
    placed = [both[:, :, i : i + 1].reshape(*shape) for i in (0, 1)]
    for shift in (0, 1, 8):
        fused = normal(rng, (2, 12 * 64 + 8), "bfloat16")
        fused[:, shift : 8 * 64 + shift] = q.reshape(2, -1)
        heads = Tensor(fused, backend=wgpu)[:, shift : 8 * 64 + shift].reshape(2, 8, 64)
        compare(attend_tensors(wgpu, [heads, *placed, *tensors(wgpu, *arrays[3:])], {}), arrays, {})
    flat = normal(rng, (k.size + 3,), "bfloat16")
    flat[3:] = k.ravel()
    odd = Tensor(flat, backend=wgpu)[3:].reshape(*shape)
    args = [*tensors(wgpu, q), odd, *tensors(wgpu, *arrays[2:])]
    compare(attend_tensors(wgpu, args, {}), arrays, {})


def test_parts_for_a_reader(wgpu, rng):
    """What a fused decode step joins itself, as attention_decode_parts.wgsl reads it."""
    for lengths in ([5], [400], [100, 0, 300]):
        arrays = build(rng, [1] * len(lengths), lengths, 9, 3, 64, bs=512)
        args = arguments(wgpu, tensors(wgpu, *arrays), {})
        parts, S = decode.partials(wgpu, *args[:7], args[8], max_splits=4, fills=100)
        assert S == 4 and parts.shape == (len(lengths), 9, 4, 68)
        x = wgpu.to_numpy(parts).astype(np.float64)
        m, total, o = x[..., 64], x[..., 65], x[..., :64]
        assert not np.isnan(m).any() and not np.isnan(total).any()
        weight = total * np.exp2(m - m.max(-1, keepdims=True))
        share = np.exp2(m - m.max(-1, keepdims=True)) * (total > 0)
        sums = np.maximum(weight.sum(-1), 1e-300)
        o = np.where(total[..., None] > 0, o, 0)
        joined = (share[..., None] * o).sum(2) / sums[..., None]
        assert np.abs(joined - reference(arrays, {})[0]).max() < 0.02


def test_lengths_are_read_by_the_program(wgpu, rng):
    """A captured step serves every length."""
    q, k, v, cu, table, lens = build(rng, [1, 1], [500, 300], 8, 2, 64, bs=500, columns=1)
    args = tensors(wgpu, q, k, v, cu, table, lens)
    program = capture(lambda: attend_tensors(wgpu, args, {}), wgpu)
    for lengths in ([1, 2], [500, 0], [64, 300]):
        args[5].assign(np.array(lengths, np.int32))
        compare(program.run(), (q, k, v, cu, table, np.array(lengths, np.int32)), {})


def test_op_runs_the_kernel(wgpu, rng):
    arrays = build(rng, [1, 1, 1], [300, 40, 1], 8, 2, 64)
    compare(paged_attention(*tensors(wgpu, *arrays)), arrays, {})


def test_long(wgpu, rng):
    """16k keys, where 16-bit indices would long have ended; one head is enough."""
    arrays = build(rng, [1], [16385], 2, 1, 64, bs=64)
    compare(attend(wgpu, arrays, {}), arrays, {})


def test_refuses(rng):
    with strict_wgpu(binding_bytes=1 << 12) as backend:

        def reason(arrays, sinks=None):
            args = arguments(backend, tensors(backend, *arrays), {})
            return decode.supports(*args[:7], sinks, args[8])

        assert "head_dim 264" in reason(build(rng, [1], [5], 2, 1, 264))
        assert "9 queries of 1" in reason(build(rng, [9], [20], 2, 1, 8))
        assert "a binding at most 4096" in reason(build(rng, [1], [400], 2, 1, 8))
        small = build(rng, [1], [5], 2, 1, 8)
        assert "sinks" in reason(small, Tensor(np.zeros(2), "float16", backend))
        assert reason(small) is None


def test_variants_are_all_different():
    """Each of the compile gate is a class of its own."""
    assert len({str(v) for v in decode.VARIANTS}) == len(decode.VARIANTS)
    assert all(isinstance(v, Variant) for v in decode.VARIANTS)
