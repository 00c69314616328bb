"""The split-KV kernels of few queries per sequence on a GPU, strictly, with memory poisoned."""

import itertools
from importlib import import_module

import numpy as np
import pytest
from draws import every, large, normal, tensors
from ops.attention_cases import CASES, close, draw
from ops.paged_cases import ENDED, build, compare, ended
from ops.test_attention import oracle, paged

from boostr import Tensor
from boostr.ops.attention import paged_attention
from boostr.options import attention_options
from boostr.program import capture


def kernels(backend):
    """The module that launches them."""
    return import_module(f"boostr.backends.{backend.name}.attention.attention_decode")


def split(backend, joined, splits):
    """Options of `attend`: one kernel for all, or parts (wgpu: so many) that a second one joins."""
    return {"joined": joined} | ({"splits": splits} if backend.name == "wgpu" else {})


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
    decode = kernels(backend)
    reason = decode.supports(*args)
    assert reason is None or "queries of" in reason, reason
    return decode.attend(*args, **chosen)


# -- the edge table of attention ------------------------------------------------------------------
EDGES = [
    pytest.param(case, dtype, id=f"{case.name}-{dtype}",
                 # heads and dims, of which each is a source of its own, are varied below
                 marks=() if dtype == "float32" and (case.D, case.H) == (16, 4)
                 else pytest.mark.large)
    for case, dtype in itertools.product(CASES, ("bfloat16", "float32"))
]  # fmt: skip


@pytest.mark.parametrize(("case", "dtype"), EDGES)
def test_edge_table(case, dtype, gpu, rng):
    q, k, v = draw(rng, case, dtype)
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), case, 16)
    arrays = q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens
    options = {"causal": False, **case.options}
    got = attend(gpu, arrays, options)
    if dtype == "float32":
        close(got, oracle(q, k, v, case), q, k, v, dtype, case.options)
    else:  # weights are rounded to bfloat16 too: what that moves depends on each row's keys
        compare(got, arrays, options, like=(k, v))


# -- everything else against plain float64 --------------------------------------------------------
SHAPES = [("bfloat16", (8, 2, 128)), ("bfloat16", (9, 3, 64)), ("float16", (4, 4, 80)),
          ("float32", (16, 1, 96))]  # fmt: skip


@pytest.mark.parametrize(("dtype", "shape"), every(
    SHAPES, ("bfloat16", "float16", "float32"),
    [(32, 8, 128), (9, 3, 64), (4, 4, 80), (16, 1, 96), (8, 2, 256)],
), ids=str)  # fmt: skip
def test_decode(dtype, shape, gpu, rng):
    """One query each, lengths from none to thousands, and unequal ones together."""
    lengths = [1, 0, 15, 16, 17, 63, 64, 65, 400, 1000, 2047]
    arrays = build(rng, [1] * len(lengths), lengths, *shape, dtype=dtype)
    compare(attend(gpu, arrays, {}), arrays, {})


@pytest.mark.parametrize("bs", [1, 16, 64, 100, 256, 1500])
@pytest.mark.parametrize("length", [1, 129, 300, 1500])
def test_block_sizes(length, bs, gpu, rng):
    arrays = build(rng, [1], [length], 8, 2, 64, bs=bs)
    compare(attend(gpu, arrays, {}), arrays, {})


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
@pytest.mark.parametrize(("dtype", "joined"), every(
    [("bfloat16", True), ("float32", False)], ("bfloat16", "float32"), (True, False)
))  # fmt: skip
def test_options(name, dtype, joined, gpu, rng):
    arrays = build(rng, [1, 0, 5, 8, 2], [700, 30, 333, 4, 0], 8, 2, 64, dtype=dtype, extra=3)
    got = attend(gpu, arrays, OPTIONS[name], **split(gpu, joined, 1 if joined else 5))
    compare(got, arrays, OPTIONS[name])


@pytest.mark.parametrize("queries", [(8, 8, 8), (1, 0, 23), (40,), (0, 0, 1)])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("dtype", "shape"), every(
    [("bfloat16", (8, 2, 64))], ("bfloat16", "float32"), [(8, 2, 128), (3, 3, 64)]
), ids=str)  # fmt: skip
def test_several_queries(dtype, shape, joined, queries, gpu, rng):
    arrays = build(rng, queries, [900, 31, 500][: len(queries)], *shape, dtype=dtype)
    compare(attend(gpu, arrays, {}, **split(gpu, joined, 1)), arrays, {})


@pytest.mark.parametrize(("bs", "columns"), [(16, 9), (100, 1), (3, 50)])
def test_ring_and_holes(bs, columns, gpu, rng):
    """Positions past the capacity, and blocks that are not there."""
    lengths = [90, 1000, 151, 5000]
    arrays = build(rng, [1, 2, 1, 1], lengths, 8, 2, 64, bs=bs, columns=columns, holes=0.3)
    for options in ({}, {"window": (60, 0)}):
        compare(attend(gpu, arrays, options), arrays, options)


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.parametrize(("dtype", "joined", "bs", "columns"), every(
    [("bfloat16", True, 16, None), ("float32", False, 512, 1)],
    ("bfloat16", "float32", "float16"), (True, False), (16, 3), (None, 130),
))  # fmt: skip
def test_ended_sequences(dtype, joined, bs, columns, name, gpu, rng):
    """Their queries get 0 and -inf, and nothing is read of blocks that nobody owns."""
    arrays, finite = ended(
        rng, name, 8, 2, 64, dtype=dtype, bs=bs, columns=columns, holes=0.2, extra=2
    )
    for options in ({}, {"window": (30, 0)}):
        got = attend(gpu, arrays, options, **split(gpu, joined, 1 if joined else 5))
        compare(got, arrays, options, like=finite)


@pytest.mark.parametrize("dtype", ["bfloat16", large("float32")])
def test_ended_sequences_among_prompts(dtype, any_gpu, rng):
    arrays, finite = ended(rng, "prompts", 8, 2, 64, dtype=dtype, holes=0.2, extra=2)
    for options in ({}, {"window": (30, 0)}):
        compare(paged_attention(*tensors(any_gpu, *arrays), **options), arrays, options, finite)


@pytest.mark.parametrize("batch", [33, 70])
def test_many_sequences(batch, gpu, rng):
    lengths = rng.integers(0, 200, batch)
    lengths[batch // 2] = 3000
    queries = rng.integers(0, 3, batch)
    arrays = build(rng, queries, lengths, 4, 2, 64)
    compare(attend(gpu, arrays, {}), arrays, {})


@pytest.mark.parametrize(("dtype", "cache"), [("float32", "bfloat16"), ("bfloat16", "float32"),
                                              ("float16", "bfloat16")])  # fmt: skip
def test_mixed_types(dtype, cache, gpu, rng):
    arrays = build(rng, [1, 1], [300, 40], 8, 2, 64, dtype=dtype, cache=cache)
    compare(attend(gpu, arrays, {}), arrays, {})


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("dtype", "dims"), every(
    [("bfloat16", (72, 40)), ("float32", (20, 12)), ("bfloat16", (7, 5)), ("float16", (8, 6)),
     ("float32", (136, 8))],
    ("bfloat16", "float32"),
    [(72, 40), (20, 12), (7, 5), (256, 64), (64, 256), (16, 248), (136, 8)],
), ids=str)  # fmt: skip
def test_odd_dims(dtype, dims, joined, gpu, rng):
    D, Dv = dims
    arrays = build(rng, [1, 2], [300, 40], 6, 2, D, Dv=Dv, dtype=dtype)
    compare(attend(gpu, arrays, {}, **split(gpu, joined, 1)), arrays, {})


def test_views(gpu, rng):
    """q within a fused projection, keys and values side by side in one pool, an odd address."""
    arrays = build(rng, [1, 1], [300, 40], 8, 2, 64)
    q, k, v = arrays[:3]
    both = Tensor(np.stack([k, v], 2), backend=gpu)  # [NB, bs, 2, K, D]
    shape = k.shape
    placed = [both[:, :, i : i + 1].reshape(*shape) for i in (0, 1)]
    assert not gpu.is_contiguous(placed[0].data)
    for shift in (0, 1, 8):
        fused = normal(rng, (2, 12 * 64 + 8), "bfloat16")
        fused[:, shift : 8 * 64 + shift] = q.reshape(2, -1)
        heads = Tensor(fused, backend=gpu)[:, shift : 8 * 64 + shift].reshape(2, 8, 64)
        compare(attend_tensors(gpu, [heads, *placed, *tensors(gpu, *arrays[3:])], {}), arrays, {})
    flat = normal(rng, (k.size + 3,), "bfloat16")
    flat[3:] = k.ravel()
    odd = Tensor(flat, backend=gpu)[3:].reshape(*shape)
    args = [*tensors(gpu, q), odd, *tensors(gpu, *arrays[2:])]
    compare(attend_tensors(gpu, args, {}), arrays, {})


def test_op_runs_the_kernel(gpu, rng):
    arrays = build(rng, [1, 1, 1], [300, 40, 1], 8, 2, 64)
    compare(paged_attention(*tensors(gpu, *arrays)), arrays, {})


def test_lengths_are_read_by_the_program(gpu, rng):
    """A captured step serves every length."""
    q, k, v, cu, table, lens = build(rng, [1, 1], [1500, 700], 8, 2, 64, bs=1500, columns=1)
    args = tensors(gpu, q, k, v, cu, table, lens)
    program = capture(lambda: paged_attention(*args), gpu)
    for lengths in ([1, 2], [1500, 0], [64, 900]):
        args[5].assign(np.array(lengths, np.int32))
        compare(program.run(), (q, k, v, cu, table, np.array(lengths, np.int32)), {})


@pytest.mark.parametrize(("length", "H", "D"), [(16385, 2, 64), large(32769, 4, 128)])
def test_long(length, H, D, gpu, rng):
    """Where 16-bit indices would long have ended; one head of keys is enough."""
    arrays = build(rng, [1], [length], H, 1, D, bs=64)
    compare(attend(gpu, arrays, {}), arrays, {})


def reason(backend, arrays, sinks=None):
    """Why the kernel does not take the call."""
    args = arguments(backend, tensors(backend, *arrays), {})
    return kernels(backend).supports(*args[:7], sinks, args[8])


def test_refuses(gpu, rng):
    assert "head_dim 264" in reason(gpu, build(rng, [1], [5], 2, 1, 264))
    assert "9 queries of 1" in reason(gpu, build(rng, [9], [20], 2, 1, 8))
    small = build(rng, [1], [5], 2, 1, 8)
    assert "sinks" in reason(gpu, small, Tensor(np.zeros(2), "float16", gpu))
    assert reason(gpu, small) is None
