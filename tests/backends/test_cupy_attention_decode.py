"""The split-KV kernel of few queries per sequence, on the GPU, with outputs poisoned."""

import numpy as np
import pytest
from draws import normal, tensors
from ops.attention_cases import CASES, close, draw
from ops.paged_cases import build, compare, reference
from ops.test_attention import oracle, paged

from boostr import Tensor, dtypes
from boostr.ops.attention import attention_options, paged_attention
from boostr.program import capture


def attend(backend, arrays, options, **chosen):
    return attend_tensors(backend, tensors(backend, *arrays), options, **chosen)


def attend_tensors(backend, inputs, options, **chosen):
    """The kernel itself, whatever the number of queries."""
    from boostr.backends.cupy import attention_decode as decode

    q = inputs[0]
    options = {"causal": True, "causal_alignment": "bottom-right", **options}
    alibi, sinks = tensors(backend, *(options.get(n) for n in ("alibi_slopes", "sinks")))
    numbers = attention_options(
        "test", q.shape[2], options["causal"], options.get("window"), options.get("scale"),
        options.get("softcap"), options["causal_alignment"],
    )  # fmt: skip
    args = *inputs, alibi, sinks, numbers
    reason = decode.supports(*args)
    assert reason is None or "queries of" in reason, reason
    return decode.attend(*args, **chosen)


# -- the edge table of attention ------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_edge_table(case, dtype, cupy_backend, rng):
    q, k, v = draw(rng, case, dtype)
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), case, 16)
    arrays = q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens
    options = {"causal": False, **case.options}
    got = attend(cupy_backend, arrays, options)
    if dtype == "float32":
        close(got, oracle(q, k, v, case), q, k, v, dtype, case.options)
    else:  # weights are rounded to bfloat16 too: what that moves depends on each row's keys
        compare(got, arrays, options, like=(k, v))


# -- everything else against plain float64 --------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("H", "K", "D"), [(32, 8, 128), (9, 3, 64), (4, 4, 80), (16, 1, 96),
                                           (8, 2, 256)])  # fmt: skip
def test_decode(H, K, D, dtype, cupy_backend, rng):
    """One query each, lengths from none to thousands, and two per-sequence extremes."""
    lengths = [1, 0, 15, 16, 17, 63, 64, 65, 1000, 2047]
    arrays = build(rng, [1] * len(lengths), lengths, H, K, D, dtype=dtype)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


@pytest.mark.parametrize("bs", [1, 16, 64, 256, 1500])
@pytest.mark.parametrize("length", [1, 129, 1500])
def test_block_sizes(length, bs, cupy_backend, rng):
    arrays = build(rng, [1], [length], 8, 2, 64, bs=bs)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


@pytest.mark.parametrize("chosen", [{}, {"alone": 0}, {"alone": 1000}], ids=str)
@pytest.mark.parametrize("length", [100, 200, 1500])
def test_one_sequence(length, chosen, cupy_backend, rng):
    arrays = build(rng, [1], [length], 8, 2, 64, bs=16)
    compare(attend(cupy_backend, arrays, {}, **chosen), arrays, {})


OPTIONS = {
    "bidirectional": {"causal": False},
    "window": {"window": (100, 0)},
    "both": {"window": (70, 3), "causal": False},
    "softcap": {"softcap": 3.0},
    "alibi": {"alibi_slopes": np.linspace(0.01, 0.3, 8, dtype=np.float32)},
    "sinks": {"sinks": np.linspace(-2, 6, 8, dtype=np.float32)},
    "scale": {"scale": 0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_options(name, dtype, joined, cupy_backend, rng):
    arrays = build(rng, [1, 0, 5, 8, 2], [700, 30, 333, 4, 0], 8, 2, 64, dtype=dtype, extra=3)
    compare(attend(cupy_backend, arrays, OPTIONS[name], joined=joined), arrays, OPTIONS[name])


def test_partials(cupy_backend, rng):
    """What the fused decode step takes: slots without keys are marked, the others add up."""
    from boostr.backends.cupy import attention_decode as decode

    for lengths in ([5], [2000], [100, 0, 700]):
        arrays = build(rng, [1] * len(lengths), lengths, 9, 3, 64, bs=2048)
        options = attention_options("test", 64, True, None, None, None,
                                    "bottom-right")  # fmt: skip
        parts = decode.partials(cupy_backend, *tensors(cupy_backend, *arrays), None, options)
        out, ms = (x.get().astype(np.float64) for x in parts[:2])
        m, total = ms[..., 0], ms[..., 1]
        assert not np.isnan(ms).any() and np.all((total > 0) == np.isfinite(m))
        out = np.where(total[..., None] > 0, out, 0)
        top = m.max(-1, keepdims=True)
        weight = np.where(total > 0, np.exp(m - np.where(np.isfinite(top), top, 0)), 0)
        sums = np.maximum((weight * total).sum(-1), 1e-300)
        joined = (weight[..., None] * out).sum(2) / sums[..., None]
        want, _, _ = reference(arrays, {})
        assert np.abs(joined - want).max() < 0.02


@pytest.mark.parametrize("queries", [(8, 8, 8), (1, 0, 23), (40,), (0, 0, 1)])
@pytest.mark.parametrize(("H", "K", "D"), [(8, 2, 128), (3, 3, 64)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_several_queries(H, K, D, queries, dtype, cupy_backend, rng):
    arrays = build(rng, queries, [900, 31, 500][: len(queries)], H, K, D, dtype=dtype)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


@pytest.mark.parametrize(("bs", "columns"), [(16, 9), (100, 1), (3, 50)])
def test_ring_and_holes(bs, columns, cupy_backend, rng):
    """Positions past the capacity, and blocks that are not there."""
    lengths = [90, 1000, 151, 5000]
    arrays = build(rng, [1, 2, 1, 1], lengths, 8, 2, 64, bs=bs, columns=columns, holes=0.3)
    for options in ({}, {"window": (60, 0)}):
        compare(attend(cupy_backend, arrays, options), arrays, options)


@pytest.mark.parametrize("batch", [33, 70])
def test_many_sequences(batch, cupy_backend, rng):
    lengths = rng.integers(0, 200, batch)
    lengths[batch // 2] = 3000
    queries = rng.integers(0, 3, batch)
    arrays = build(rng, queries, lengths, 4, 2, 64)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


@pytest.mark.parametrize("chosen", [
    {"joined": False}, {"grain": 1}, {"grain": 32}, {"groups": 3}, {"stages": 1},
    {"stages": 4, "warps": 2}, {"keys": 32}, {"rows": 32}, {"warps": 4, "blocks": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_plans(chosen, dtype, cupy_backend, rng):
    if dtype == "float32" and chosen.get("rows", chosen.get("keys")) == 32:
        pytest.skip("tensor cores only")
    arrays = build(rng, [1, 3, 1], [1, 3000, 777], 8, 2, 64, dtype=dtype)
    compare(attend(cupy_backend, arrays, {}, **chosen), arrays, {})


@pytest.mark.parametrize(("dtype", "cache"), [("float32", "bfloat16"), ("bfloat16", "float32"),
                                              ("float16", "bfloat16")])  # fmt: skip
def test_mixed_types(dtype, cache, cupy_backend, rng):
    arrays = build(rng, [1, 1], [300, 40], 8, 2, 64, dtype=dtype, cache=cache)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


@pytest.mark.parametrize(("D", "Dv"), [(72, 40), (20, 12), (7, 5), (256, 64), (64, 256), (136, 8)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_odd_dims(D, Dv, dtype, cupy_backend, rng):
    arrays = build(rng, [1, 2], [300, 40], 6, 2, D, Dv=Dv, dtype=dtype)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


def test_views(cupy_backend, rng):
    """q within a fused projection, keys and values side by side in one pool, an odd address."""
    arrays = build(rng, [1, 1], [300, 40], 8, 2, 64)
    q, k, v = arrays[:3]
    both = Tensor(np.stack([k, v], 2), backend=cupy_backend)  # [NB, bs, 2, K, D]
    shape = k.shape
    placed = [both[:, :, i : i + 1].reshape(*shape) for i in (0, 1)]
    assert not placed[0].data.flags.c_contiguous
    for shift in (0, 1, 8):
        fused = normal(rng, (2, 12 * 64 + 8), "bfloat16")
        fused[:, shift : 8 * 64 + shift] = q.reshape(2, -1)
        heads = Tensor(fused, backend=cupy_backend)[:, shift : 8 * 64 + shift].reshape(2, 8, 64)
        args = [heads, *placed, *tensors(cupy_backend, *arrays[3:])]
        compare(attend_tensors(cupy_backend, args, {}), arrays, {})
    flat = normal(rng, (k.size + 3,), "bfloat16")
    flat[3:] = k.ravel()
    odd = Tensor(flat, backend=cupy_backend)[3:].reshape(*shape)
    assert odd.data.data.ptr % 16
    args = [*tensors(cupy_backend, q), odd, *tensors(cupy_backend, *arrays[2:])]
    compare(attend_tensors(cupy_backend, args, {}), arrays, {})


def test_op_runs_the_kernel(cupy_backend, rng):
    arrays = build(rng, [1, 1, 1], [300, 40, 1], 8, 2, 64)
    compare(paged_attention(*tensors(cupy_backend, *arrays)), arrays, {})


def test_lengths_are_read_by_the_program(cupy_backend, rng):
    """A captured step serves every length."""
    q, k, v, cu, table, lens = build(rng, [1, 1], [1500, 700], 8, 2, 64, bs=1500, columns=1)
    args = tensors(cupy_backend, q, k, v, cu, table, lens)
    program = capture(lambda: paged_attention(*args), cupy_backend)
    for lengths in ([1, 2], [1500, 0], [64, 900]):
        args[5].assign(np.array(lengths, np.int32))
        compare(program.run(), (q, k, v, cu, table, np.array(lengths, np.int32)), {})


def test_long(cupy_backend, rng):
    """32k keys, where int16 and float16 indices would long have ended; one head is enough."""
    arrays = build(rng, [1], [32769], 4, 1, 128, bs=64)
    compare(attend(cupy_backend, arrays, {}), arrays, {})


def test_refuses(cupy_backend, rng):
    from boostr.backends.cupy import attention_decode as decode

    def reason(arrays, sinks=None):
        q = tensors(cupy_backend, *arrays)
        options = attention_options("test", q[0].shape[2], True, None, None, None, "bottom-right")
        return decode.supports(*q, None, sinks, options)

    assert "float64" in reason(build(rng, [1], [5], 2, 1, 8, dtype="float64"))
    assert "head_dim 264" in reason(build(rng, [1], [5], 2, 1, 264))
    assert "9 queries of 1" in reason(build(rng, [9], [20], 2, 1, 8))
    small = build(rng, [1], [5], 2, 1, 8)
    assert "sinks" in reason(small, Tensor(np.zeros(2), "float16", cupy_backend))
    assert reason(small) is None and dtypes.bfloat16 == small[0].dtype
