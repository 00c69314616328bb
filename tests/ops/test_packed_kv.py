"""Caches that keep keys and values as whole numbers and scales: writing them, attention to them."""

from dataclasses import replace

import numpy as np
import oracles
import oracles_kv
import pytest
from draws import kernels_alone, normal, rare, refused, strided, tensors
from ops import paged_cases
from ops.attention_cases import CASES, Case, close, draw
from ops.test_attention import FEW, paged, placed

from boostr import Tensor
from boostr.errors import BackendError, DTypeError, OptionError, ShapeError
from boostr.operands import PackedKV
from boostr.ops.attention import paged_attention
from boostr.ops.cache import kv_write, new_kv
from boostr.quant.kv import KV_FORMS, parse_kv_form

forms = pytest.mark.parametrize("form", KV_FORMS)
BY_NAME = {case.name: case for case in CASES}
HEADS = [
    *(Case(f"head-dim-{D}", (1, 9), (70, 11), H=4, K=2, D=D, options={"causal": True})
      for D in (64, 96, 128, 256)),
    Case("narrow-values", (1, 3), (20, 33), H=6, K=2, D=96, Dv=32, options={"causal": True}),
    replace(BY_NAME["everything"], D=64),
]  # fmt: skip

WIDTHS = [n for n, c in BY_NAME.items() if n != "head-dim-1" and (c.D != 16 or c.Dv)]  # see HEADS


def held(backend, pair):
    """Planes of keys or values on a device."""
    return PackedKV(*tensors(backend, *pair))


# -- writing ---------------------------------------------------------------------------------------
@forms
@pytest.mark.parametrize(("K", "widths"), [(2, (64, 32)), (1, (256, 256)), (3, (96, 128))])
def test_write(K, widths, form, backend, rng):
    k, v = (normal(rng, (5, K, D), scale=s) for D, s in zip(widths, (3.0, 1e-3), strict=True))
    k[2] = 0
    slots = np.array([7, -1, 0, 11, 3], np.int32)
    caches = [new_kv((4, 3, K, D), KV_FORMS[form], backend) for D in widths]
    kv_write(*tensors(backend, strided(k), v), *caches, Tensor(slots, backend=backend))
    for cache, x in zip(caches, (k, v), strict=True):
        assert cache.shape == (4, 3, K, x.shape[-1])
        planes = [p.numpy().reshape(12, K, -1) for p in cache]
        untouched = np.setdiff1d(np.arange(12), slots)
        assert not any(p[untouched].any() for p in planes)
        written = slots[slots >= 0]
        oracles_kv.check_rounded([p[written] for p in planes], x[slots >= 0], form)


@forms
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_write_dtypes(form, dtype, backend, rng):
    k, v = (normal(rng, (3, 2, 64), dtype) for _ in range(2))
    caches = [new_kv((3, 1, 2, 64), KV_FORMS[form], backend) for _ in range(2)]
    slots = np.arange(3, dtype=np.int32)
    kv_write(*tensors(backend, k, v), *caches, Tensor(slots, backend=backend))
    for cache, x in zip(caches, (k, v), strict=True):
        planes = [p.numpy().reshape(3, 2, -1) for p in cache]
        oracles_kv.check_rounded(planes, x.astype(np.float32), form)


def test_ties_go_to_even(backend):
    """127 makes the scale 1, so halves are ties."""
    row = np.array([127, 0.5, 1.5, -0.5, -2.5, 126.5, -127, 3], np.float32)
    x = Tensor(row.reshape(1, 1, 8), backend=backend)
    caches = [new_kv((1, 1, 1, 8), KV_FORMS["int8"], backend) for _ in range(2)]
    kv_write(x, x, *caches, Tensor(np.zeros(1, np.int32), backend=backend))
    assert caches[0].codes.numpy().ravel().tolist() == [127, 0, 2, 0, -2, 126, -127, 3]
    assert caches[1].scales.numpy().tolist() == [[[[1.0]]]]


@forms
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_no_number_is_seen(where, bad, form, backend, rng):
    """One in a key or a value: the token that sees it is nan in all that its group adds to."""
    new = [normal(rng, (2, 1, 64)) for _ in range(2)]
    new[where][1, 0, 40] = bad
    caches = [new_kv((2, 1, 1, 64), KV_FORMS[form], backend) for _ in range(2)]
    q, *both = tensors(backend, normal(rng, (2, 2, 64)), *new)
    kv_write(*both, *caches, Tensor(np.array([0, 1], np.int32), backend=backend))
    table = np.array([[0, 1]], np.int32)
    rest = tensors(backend, np.array([0, 2], np.int32), table, np.array([2], np.int32))
    out = paged_attention(q, *caches, *rest)[0].numpy()
    group = slice(32, 64) if where and form == "int4" else slice(None)
    assert np.isnan(out[1, :, group]).all()


# -- attention -------------------------------------------------------------------------------------
def attend(backend, rng, case, form, bs, columns=None, dtype="float32"):
    q, k, v = draw(rng, case, dtype)
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), case, bs, columns)
    if dtype == "float32":
        planes = [oracles_kv.packed(c, form) for c in (k_cache, v_cache)]
    else:  # kernels may multiply what they read as numbers of 16 bits
        planes = [oracles_kv.drawn(rng, c.shape, form) for c in (k_cache, v_cache)]
    options = {"causal": False, **placed(backend, case.options)}
    lengths = case.cu_seqlens_q, table, kv_lens
    caches = (held(backend, p) for p in planes)
    x, *rest = tensors(backend, q, *lengths)
    got = paged_attention(x, *caches, *rest, **options)
    assert got[0].dtype == q.dtype
    truth = [oracles_kv.numbers(*p) for p in planes]
    want = oracles.paged_attention(q.astype(np.float64), *truth, *lengths, **case.options)
    close(got, want, q, k, v, dtype, case.options, (case.cu_seqlens_q, case.cu_seqlens_k))


@pytest.mark.parametrize(
    "name",
    [*kernels_alone(FEW, [n for n in BY_NAME if n not in WIDTHS]), *map(rare, WIDTHS)],
)
def test_edge_table(name, backend, rng):
    attend(backend, rng, BY_NAME[name], "int8", 16)


def test_small_blocks(backend, rng):
    attend(backend, rng, BY_NAME["everything"], "int8", 3)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        rare(case, form) if i % 2 == j and case.D != 128 else (case, form)
        for i, case in enumerate(HEADS) for j, form in enumerate(KV_FORMS)
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)  # fmt: skip
def test_heads(case, form, backend, rng):
    attend(backend, rng, case, form, 16)


@forms
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_dtypes_of_queries(stored, form, backend, rng):
    attend(backend, rng, HEADS[-1], form, 16, dtype=stored)


@forms
@pytest.mark.parametrize(("bs", "columns"), [(1, 20), (4, 5), (32, 1)])
def test_rings(bs, columns, form, backend, rng):
    case = Case("ring", (4, 1), (40, 33), D=64, options={"causal": True, "window": (8, 0)})
    attend(backend, rng, case, form, bs, columns)


@forms
@pytest.mark.parametrize("name", paged_cases.ENDED)
def test_ended_sequences(name, form, backend, rng):
    """Scales are nan where nobody may read."""
    arrays, planes, finite = paged_cases.ended_packed(
        rng, name, form, 4, 2, 64, dtype="float32", holes=0.2, extra=2
    )
    q, *rest = tensors(backend, arrays[0], *arrays[3:])
    got = paged_attention(q, *(held(backend, p) for p in planes), *rest)
    paged_cases.compare(got, arrays, {}, like=finite)


# -- refusals --------------------------------------------------------------------------------------
def test_refuses(rng):
    with refused(OptionError, "kv_dtype", "'int5'", "int8, int4"):
        parse_kv_form("int5")
    with refused(OptionError, "int4", "heads of 80", "32", "int8"):
        new_kv((1, 1, 1, 80), KV_FORMS["int4"], "numpy")
    k, v = tensors("numpy", normal(rng, (1, 1, 64)), normal(rng, (1, 1, 64)))
    eight, four = (new_kv((2, 1, 1, 64), KV_FORMS[f], "numpy") for f in ("int8", "int4"))
    plain, slots = new_kv((2, 1, 1, 64), k.dtype, "numpy"), Tensor(np.zeros(1, "i4"), "int32")
    slots = slots.to("numpy")
    with refused(DTypeError, "kv_write", "k_cache and v_cache", "packed"):
        kv_write(k, v, eight, plain, slots)
    with refused(DTypeError, "kv_write", "int8", "int4"):
        kv_write(k, v, eight, four, slots)
    with refused(ShapeError, "kv_write", "[1, 1, 32]", "[2, 1, 1, 64]"):
        kv_write(k[..., :32], v, eight, eight, slots)
    wide = PackedKV(new_kv((2, 1, 1, 128), KV_FORMS["int8"], "numpy").codes[..., :64], eight.scales)
    with refused(BackendError, "kv_write", "contiguous"):
        kv_write(k, v, wide, eight, slots)
    rest = tensors("numpy", *(np.array(x, np.int32) for x in ([0, 1], [[0]], [1])))
    for other in (four, plain):
        with refused(DTypeError, "paged_attention", "int8"):
            paged_attention(k, eight, other, *rest)
