"""The fused sites of a decoder layer on a GPU, by their kernels: all kinds of norms and heads.

The references are the sites' composites on numpy, of which `tests/ops` have the truth.
"""

import numpy as np
import pytest
from backends.products.test_wgpu_fusion import both, cache_of, on, weights
from draws import normal
from tolerance import assert_close, rms

from boostr.operands import HeadNorms, Norm, Rope

E, H, KH, D, EPS = 64, 4, 2, 16, 1e-5
FEW, MANY = (1, 2), 12


def norm_of(rng, shape, kind="rms", offset=0.0, bias=False):
    gain, shift = on(normal(rng, shape) + 1), on(normal(rng, shape))
    return lambda place: Norm(kind, gain(place), shift(place) if bias else None, EPS, offset)


def heads_of(rng, over, offset=0.0, last=False):
    shapes = {"head": ((D,), (D,)), "heads": ((H, D), (KH, D)), "all": ((H * D,), (KH * D,))}
    q, k = (norm_of(rng, s, offset=offset) for s in shapes[over])
    return lambda place: HeadNorms(q(place), k(place), last)


def rope_of(rng, T, rotated=D, layout="split-half", factors=False):
    cos, sin = (normal(rng, (40, rotated // 2)) for _ in range(2))
    rows, scale = (np.arange(T, dtype=np.int32) * 7) % 40, normal(rng, (40,))

    def make(place):
        tables = [on(a)(place) for a in (cos, sin, rows)]
        return Rope(*tables, layout, on(scale)(place) if factors else None)

    return make


# norm before, norms of heads, rope
KINDS = {
    "no rope": ({}, None, None),
    "no rope, norms of heads": ({}, {"over": "head"}, None),
    "layer norm": ({"kind": "layer"}, None, {}),
    "layer norm with a bias, partial rope": ({"kind": "layer", "bias": True}, None, {"rotated": 8}),
    "offsets": ({"offset": 1.0}, {"over": "head", "offset": 1.0}, {"layout": "interleaved"}),
    "queries with a factor": ({}, None, {"factors": True, "rotated": 8}),
    "queries with a factor and norms": ({}, {"over": "head"}, {"factors": True}),
    "norms after rope": ({}, {"over": "head", "last": True}, {"layout": "interleaved"}),
    "norms after partial rope": ({}, {"over": "head", "last": True, "offset": 1.0}, {"rotated": 8}),
    "a norm for each head": ({}, {"over": "heads"}, {}),
    "norms of all heads at once": ({}, {"over": "all"}, {}),
    "norms of all heads after rope": ({}, {"over": "all", "last": True}, {"rotated": 8}),
    "norms of all heads, no norm before": (None, {"over": "all"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("T", (*FEW, MANY))
@pytest.mark.parametrize("write", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_attention_inputs(gpu, rng, kind, write, T):
    before, own, rope = KINDS[kind]
    parts = [normal(rng, (n * D, E), "bfloat16", 0.1) for n in (H, KH, KH)]
    slots = np.arange(T, dtype=np.int32)[::-1].copy()
    slots[1:2] = -1
    caches = [normal(rng, (3, 8, KH, D)) for _ in range(2)]
    arguments = [
        on(normal(rng, (T, E)) + 3), None if before is None else norm_of(rng, (E,), **before),
        weights(*parts), [None] * 3, HeadNorms() if own is None else heads_of(rng, **own),
        None if rope is None else rope_of(rng, T, **rope),
        cache_of(*caches, slots, slots[None, :1], slots[:1]) if write else None,
    ]  # fmt: skip
    for got, want in both(gpu, "attention_inputs", arguments, head_dim=D):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


@pytest.mark.parametrize("kind", ({"offset": 1.0}, {"kind": "layer", "bias": True}), ids=str)
@pytest.mark.parametrize(("count", "T"), ((1, 1), (1, 2), (2, 2), (2, MANY)))
def test_products(gpu, rng, kind, count, T):
    parts = [normal(rng, (48, E), "bfloat16", 0.1) for _ in range(count)]
    arguments = [on(normal(rng, (T, E))), norm_of(rng, (E,), **kind), weights(*parts)]
    for got, want in both(gpu, "products", [*arguments, [None] * count], activation="gelu"):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


@pytest.mark.parametrize("kind", ({"offset": 1.0}, {"kind": "layer", "bias": True}), ids=str)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize(("T", "width"), ((1, 64), (3, 33), (40, 640)))
@pytest.mark.parametrize("factor", (1.0, 0.22))
def test_add_norm(gpu, rng, kind, dtype, T, width, factor):
    x, residual = (on(normal(rng, (T, width), dtype)) for _ in range(2))
    arguments = [x, norm_of(rng, (width,), **kind), residual]
    for got, want in both(gpu, "add_norm", arguments, factor=factor):
        assert_close(got, want, dtype=dtype, reduce=2, scale=4 * rms(want))


@pytest.mark.parametrize("biased", (False, True))
@pytest.mark.parametrize("added", (False, True))
@pytest.mark.parametrize("T", FEW)
def test_product_with_a_factor(gpu, rng, biased, added, T):
    w = on(normal(rng, (48, E), "bfloat16", 0.1))
    bias = on(normal(rng, (48,))) if biased else None
    residual = on(normal(rng, (T, 48))) if added else None
    arguments = [on(normal(rng, (T, E))), w, bias, residual, 0.22]
    for got, want in both(gpu, "product", arguments):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


@pytest.mark.parametrize("tokens", (1, 40))
def test_attention_and_its_projection_with_a_factor(gpu, rng, tokens):
    B = 2
    q, residual = normal(rng, (B, H, D)), normal(rng, (B, E))
    caches = [normal(rng, (B, 64, KH, D)) for _ in range(2)]
    cu, table = np.arange(B + 1, dtype=np.int32), np.arange(B, dtype=np.int32)[:, None].copy()
    cache = cache_of(
        *caches, np.zeros(B, np.int32), table, np.array([tokens, tokens + 7], np.int32)
    )
    w, b = normal(rng, (E, H * D), "bfloat16", 0.1), normal(rng, (E,))
    arguments = [on(q), cache, on(cu), on(w), on(b), on(residual)]
    for got, want in both(gpu, "attend", arguments, factor=0.22):
        assert_close(got, want, dtype="float32", reduce=H * D, scale=rms(want))
