"""Kernels of packed keys and values on a GPU, strictly, with memory poisoned."""

import numpy as np
import oracles_kv
import pytest
from draws import every, large, normal, strided, tensors
from ops.paged_cases import ENDED, build, compare, ended_packed

from boostr import Tensor
from boostr.operands import PackedKV
from boostr.ops.attention import paged_attention
from boostr.ops.cache import kv_write, new_kv
from boostr.program import capture
from boostr.quant.kv import KV_FORMS
from boostr.tensor import full

forms = pytest.mark.parametrize("form", KV_FORMS)


def packed(rng, arrays, form):
    """A call's arrays with other numbers in the caches, and the planes that mean these."""
    q, k, v, *rest = arrays
    planes = [oracles_kv.drawn(rng, c.shape, form) for c in (k, v)]
    return (q, *(oracles_kv.numbers(*p) for p in planes), *rest), planes


def attend(gpu, rng, arrays, form, options, attention=paged_attention):
    """`attention`, of those arrays with packed caches, against the oracle."""
    arrays, planes = packed(rng, arrays, form)
    q, *rest = tensors(gpu, arrays[0], *arrays[3:])
    caches = (PackedKV(*tensors(gpu, *p)) for p in planes)
    known = {n: Tensor(x, backend=gpu) if isinstance(x, np.ndarray) else x
             for n, x in options.items()}  # fmt: skip
    compare(attention(q, *caches, *rest, **known), arrays, options)


SHAPES = [("bfloat16", (8, 2, 128)), ("bfloat16", (9, 3, 64)), ("float32", (16, 1, 96)),
          ("float16", (4, 4, 64)), ("bfloat16", (64, 2, 64))]  # fmt: skip


@forms
@pytest.mark.parametrize(("dtype", "shape"), every(
    SHAPES, ("bfloat16", "float16", "float32"),
    [(32, 8, 128), (9, 3, 64), (16, 1, 96), (8, 2, 256), (64, 2, 64), (96, 1, 128)],
), ids=str)  # fmt: skip
def test_decode(dtype, shape, form, gpu, rng):
    lengths = [1, 0, 15, 16, 17, 63, 64, 65, 400, 1000, 2047]
    arrays = build(rng, [1] * len(lengths), lengths, *shape, dtype=dtype)
    attend(gpu, rng, arrays, form, {})


@pytest.mark.parametrize("D", [16, large(80), large(112)])
def test_widths_of_int8(D, gpu, rng):
    attend(gpu, rng, build(rng, [1, 3], [300, 40], 6, 2, D), "int8", {})
    attend(gpu, rng, build(rng, [1, 3], [300, 40], 6, 2, D, Dv=32), "int8", {})


@forms
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_prompts(dtype, form, gpu, rng):
    """More queries than decoding has, behind others and alone."""
    arrays = build(rng, [40, 3, 100], [90, 3, 100], 4, 2, 64, dtype=dtype)
    attend(gpu, rng, arrays, form, {})
    attend(gpu, rng, arrays, form, {"window": (20, 0)})


OPTIONS = {
    "bidirectional": {"causal": False},
    "window": {"window": (100, 0)},
    "softcap": {"softcap": 3.0},
    "alibi": {"alibi_slopes": np.linspace(0.01, 0.3, 8, dtype=np.float32)},
    "sinks": {"sinks": np.linspace(-2, 6, 8, dtype=np.float32)},
}


@pytest.mark.parametrize(("name", "form"), every(
    [*zip(OPTIONS, ("int8", "int4", "int8", "int4", "int8"), strict=True)], OPTIONS, KV_FORMS,
))  # fmt: skip
def test_options(name, form, gpu, rng):
    arrays = build(rng, [1, 0, 5, 8, 2], [700, 30, 333, 4, 0], 8, 2, 64, extra=3)
    attend(gpu, rng, arrays, form, OPTIONS[name])


@forms
@pytest.mark.parametrize("queries", [(1, 2, 1, 1), (30, 2, 9, 40)])
@pytest.mark.parametrize(("bs", "columns"), [(16, 9), (100, 1), (3, 50)])
def test_ring_and_holes(bs, columns, queries, form, gpu, rng):
    """Positions past the capacity, and blocks that are not there."""
    lengths = [90, 1000, 151, 5000]
    arrays = build(rng, queries, lengths, 8, 2, 64, bs=bs, columns=columns, holes=0.3)
    attend(gpu, rng, arrays, form, {"window": (60, 0)})


@forms
@pytest.mark.parametrize("name", ENDED)
def test_ended_sequences(name, form, gpu, rng):
    """Nothing is read of blocks that nobody owns, whose scales are nan."""
    arrays, planes, finite = ended_packed(
        rng, name, form, 8, 2, 64, dtype="bfloat16", holes=0.2, extra=2
    )
    q, *rest = tensors(gpu, arrays[0], *arrays[3:])
    caches = (PackedKV(*tensors(gpu, *p)) for p in planes)
    compare(paged_attention(q, *caches, *rest), arrays, {}, like=finite)


@forms
def test_program(form, gpu, rng):
    """Writing and reading recorded: lengths and slots are read by the device."""
    arrays = build(rng, [1, 1], [1500, 700], 8, 2, 64, bs=1500, columns=1)
    arrays, planes = packed(rng, arrays, form)
    q, cu, table, lens = tensors(gpu, arrays[0], *arrays[3:])
    caches = [PackedKV(*tensors(gpu, *p)) for p in planes]
    slots = Tensor(np.array([3, -1], np.int32), backend=gpu)
    new = [full((2, 2, 64), x, "bfloat16", gpu) for x in (1.0, -0.5)]  # which every form keeps

    def step():
        kv_write(*new, *caches, slots)
        return paged_attention(q, *caches, cu, table, lens)

    program = capture(step, gpu)
    for place, lengths in ((5, [1, 2]), (1400, [1500, 0]), (70, [64, 900])):
        slots.assign(np.array([place, -1], np.int32))
        lens.assign(np.array(lengths, np.int32))
        got = program.run()
        truth = [oracles_kv.numbers(*(p.numpy() for p in c)) for c in caches]
        now = (arrays[0], *truth, *arrays[3:5], np.array(lengths, np.int32))
        compare(got, now, {})


@forms
@pytest.mark.parametrize(("dtype", "K", "widths"), [
    ("bfloat16", 2, (64, 32)), ("float32", 1, (256, 256)), ("float16", 3, (96, 128)),
])  # fmt: skip
def test_write(dtype, K, widths, form, gpu, rng):
    k, v = (normal(rng, (5, K, D), dtype, s) for D, s in zip(widths, (3.0, 1e-2), strict=True))
    k[2], v[4, :, 3] = 0, np.nan
    slots = np.array([7, -1, 0, 11, 3], np.int32)
    caches = [new_kv((4, 3, K, D), KV_FORMS[form], gpu) for D in widths]
    kv_write(*tensors(gpu, strided(k), v), *caches, Tensor(slots, backend=gpu))
    for cache, x in zip(caches, (k, v), strict=True):
        planes = [p.numpy().reshape(12, K, -1) for p in cache]
        assert not any(p[np.setdiff1d(np.arange(12), slots)].any() for p in planes)
        sound = [0, 2, 3]
        got = [p[slots[sound]] for p in planes]
        oracles_kv.check_rounded(got, x[sound].astype(np.float32), form)
        broken = np.isnan(planes[1][slots[4]].astype(np.float32)).any(-1)
        assert np.all(broken == np.isnan(x[4].astype(np.float32)).any(-1))
