"""Hopper's attention of few queries over many keys: how calls are cut, what clusters compute."""

from typing import Any

import numpy as np
import oracles
import pytest
from draws import normal, tensors
from dry_cupy import DryCupy

from boostr import capture
from boostr.backends.cupy.attention import attention_sm90 as whole
from boostr.backends.cupy.attention import attention_split_sm90 as split
from boostr.options import AttentionOptions

SMS = 132
SINKS = np.array([0.5, -1.0, 2.0, 0.0, 1.5, -0.5, 0.25, 3.0], np.float32)
SLOPES = np.array([2.0 ** -(n / 2) for n in range(8)], np.float32)
OPTIONS = {
    "causal": {"causal": True},
    "full": {"causal": False},
    "top-left": {"causal": True, "causal_alignment": "top-left"},
    "window": {"causal": True, "window": (600, 0)},
    "band": {"causal": False, "window": (700, 30)},
    "sinks": {"causal": True, "sinks": SINKS},
    "softcap": {"causal": True, "softcap": 15.0},
    "alibi": {"causal": True, "alibi_slopes": SLOPES, "sinks": SINKS},
}


# -- how calls are cut -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("T", "B", "H", "K", "keys", "expected"),
    [
        (128, 1, 32, 8, 8192, (4, 32, 3)),  # a hit of the prefix cache, 1B
        (32, 1, 32, 8, 8192, (4, 8, 8)),
        (256, 1, 32, 8, 8192, (4, 64, 2)),
        (128, 4, 32, 8, 2048, (4, 56, 2)),
        (128, 1, 32, 8, 512, (4, 32, 2)),  # two tiles of keys a block
        (64, 1, 32, 8, 8192, (4, 16, 6)),
        (64, 1, 32, 8, 2048, (4, 16, 2)),  # few keys are not worth a larger cluster
        (128, 1, 32, 8, 256, (4, 32, 1)),
        (2048, 1, 32, 8, 8192, (4, 512, 1)),  # long prompts fill the GPU by themselves
        (64, 1, 14, 2, 4096, (1, 14, 4)),  # 7 heads a kv head
        (64, 1, 12, 2, 8192, (2, 6, 8)),
    ],
)
def test_cut(T, B, H, K, keys, expected):
    pack = split.pack_of(H // K, alibi=False)
    items = split.items_of(T, B, H, pack)
    assert (pack, items, split.splits_of(items, keys, SMS)) == expected


def test_slopes_keep_heads_apart():
    assert split.pack_of(8, alibi=True) == 1


def test_items_are_enough(rng):
    """Segment b's first tile is cu[b] / tokens + b, as the kernel has it."""
    for _ in range(300):
        lengths = rng.integers(0, 90, rng.integers(1, 9)) * rng.integers(0, 2)
        T, tokens = int(lengths.sum()) + int(rng.integers(1, 40)), 32
        tiles = split.items_of(T, len(lengths), 4, 4)
        cu = np.cumsum([0, *lengths])
        last = [int(cu[b]) // tokens + b + -(-int(n) // tokens) for b, n in enumerate(lengths)]
        assert max(last) <= tiles


def test_launch_fits_the_kernel(monkeypatch):
    """Arguments against the source's parameters, boxes of queries against a tile's rows."""
    boxes = []
    monkeypatch.setattr(split, "tensor_map", lambda x, box: boxes.append(box) or bytes(128))
    backend = DryCupy()
    arrays = [np.zeros(shape, "float16") for shape in ((40, 8, 64), *[(32, 128, 2, 64)] * 2)]
    lengths = [np.array(x, np.int32) for x in ([0, 40], np.arange(32)[None], [4000])]
    call: list[Any] = [*tensors(backend, *arrays, *lengths, None, None), options_of(causal=True)]
    assert split.supports(*call) is None
    split.run(*call)
    ((family, name, defines),) = backend.launched
    assert (family, name) == ("attention_split_sm90", "attention_split")
    assert (defines["SPLIT"], defines["PACK"], defines["PAGED"]) == (4, 4, 1)
    assert boxes == [(32, 4, 64), (128, 1, 64), (128, 1, 64)]


def options_of(
    causal=True, window=None, softcap=0.0, causal_alignment="bottom-right", D=64, **rest
):
    left, right = window or (-1, -1)
    aligned = causal_alignment == "bottom-right"
    return AttentionOptions(causal, left, right, D**-0.5, softcap, aligned)


# -- what clusters compute -------------------------------------------------------------------------
@pytest.fixture
def hopper(cupy_backend):
    if cupy_backend.caps.compute_capability != 90:
        pytest.skip(f"compute capability {cupy_backend.caps.compute_capability} is not 90")
    return cupy_backend


@pytest.fixture(params=[2, 3, 6, 8])
def splits(request, monkeypatch):
    """So many blocks share the keys, whatever would be chosen."""
    monkeypatch.setattr(split, "splits_of", lambda *args: request.param)
    return request.param


def packed(lengths) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.int32)


def draw(rng, len_q, len_k, D, H, K, bs, dtype, extra=0) -> tuple[Any, ...]:
    """q, caches with NaN where no sequence owns a row, cu_seqlens_q, block table, kv_lens."""
    columns = max(1, -(-max(len_k) // bs))
    B = len(len_k)
    caches = [normal(rng, (B * columns + 3, bs, K, D), dtype) for _ in range(2)]
    table = rng.permutation(B * columns + 3)[: B * columns].reshape(B, columns).astype(np.int32)
    owned = np.zeros(caches[0].shape[:2], bool)
    for row, n in zip(table, len_k, strict=True):
        owned[row[np.arange(n) // bs], np.arange(n) % bs] = True
    for cache in caches:
        cache[~owned] = np.nan
    q = normal(rng, (sum(len_q) + extra, H, D), dtype)
    return q, *caches, packed(len_q), table, np.array(len_k, np.int32)


def attend(backend, arrays, options):
    """The kernel itself, after making sure that it takes the call."""
    extras = [options.get(name) for name in ("alibi_slopes", "sinks")]
    D = arrays[0].shape[-1]
    call: list[Any] = [*tensors(backend, *arrays, *extras), options_of(**options, D=D)]
    assert split.supports(*call) is None
    return split.run(*call)


def near(got, arrays, options, dtype):
    """Probabilities and the result round to the dtype, by half of eps; lse is float32."""
    q, k, v, *rest = arrays
    finite = [np.nan_to_num(x.astype(np.float32)) for x in (k, v)]
    want = oracles.paged_attention(q, *finite, *rest, **options)
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    out, lse = (x.numpy().astype(np.float64) for x in got)
    most = np.abs(finite[1]).max()
    assert np.all(np.abs(out - want[0]) <= 1.01 * half * (np.abs(want[0]) + most))
    np.testing.assert_allclose(lse, want[1], rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("splits", [4], indirect=True)
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, D, splits, hopper, rng):
    """Long and short segments, one without keys, one without queries, tokens in none."""
    len_q, len_k = (90, 5, 0, 33, 17), (2100, 640, 300, 33, 0)
    arrays = draw(rng, len_q, len_k, D, 8, 2, 128, "bfloat16", extra=21)
    near(attend(hopper, arrays, OPTIONS[options]), arrays, OPTIONS[options], "bfloat16")


@pytest.mark.parametrize("splits", [8], indirect=True)
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("heads", [(1, 1), (8, 1), (7, 1), (12, 2), (16, 2), (32, 8)])
def test_heads(heads, D, splits, hopper, rng):
    """All numbers of heads that share a tile."""
    H, K = heads
    arrays = draw(rng, (40, 12), (1000, 1300), D, H, K, 128, "bfloat16")
    near(attend(hopper, arrays, {"causal": True}), arrays, {"causal": True}, "bfloat16")


@pytest.mark.parametrize("new", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, 250])
@pytest.mark.parametrize("keys", [250, 1024, 1025, 4100])
def test_lengths_off_the_tile(new, keys, splits, hopper, rng):
    arrays = draw(rng, (new,), (keys,), 64, 8, 2, 256, "bfloat16")
    near(attend(hopper, arrays, {"causal": True}), arrays, {"causal": True}, "bfloat16")


@pytest.mark.parametrize("splits", [2], indirect=True)
@pytest.mark.parametrize("D", [64, 128])
def test_float16(D, splits, hopper, rng):
    arrays = draw(rng, (60, 100), (1500, 700), D, 8, 2, 128, "float16")
    near(attend(hopper, arrays, {"causal": True}), arrays, {"causal": True}, "float16")


def test_captured(hopper, rng):
    """One program serves other lengths, as the engine's does; chosen as it is for the engine."""
    q, k, v, _, table, _ = draw(rng, (128,), (8192,), 64, 32, 8, 128, "bfloat16")
    cu, lens = packed((128,)), np.array([8192], np.int32)
    call: list[Any] = [*tensors(hopper, q, k, v, cu, table, lens, None, None), options_of()]
    assert split.supports(*call) is None
    program = capture(lambda: split.run(*call), hopper)
    for new, keys in ((128, 8192), (96, 4096), (1, 1), (50, 50), (100, 3000)):
        call[3].assign(packed((new,)))
        call[5].assign(np.array([keys], np.int32))
        arrays = q, k, v, packed((new,)), table, np.array([keys], np.int32)
        near(program.run(), arrays, {"causal": True}, "bfloat16")


def test_as_the_whole_kernel(splits, hopper, rng):
    """The same numbers as without sharing, but for the order of sums."""
    arrays = draw(rng, (100,), (3000,), 64, 8, 2, 128, "bfloat16")
    call: list[Any] = [*tensors(hopper, *arrays, None, None), options_of()]
    ours, theirs = split.run(*call), whole.paged_run(*call)
    np.testing.assert_allclose(ours[1].numpy(), theirs[1].numpy(), rtol=2e-6, atol=2e-5)
    a, b = (x[0].numpy().astype(np.float32) for x in (ours, theirs))
    assert np.abs(a - b).max() <= 2.0**-7 * np.abs(b).max()


def test_refusals(hopper, rng):
    """It says why it does not take a call."""
    few = draw(rng, (40,), (300,), 64, 8, 2, 300, "bfloat16")
    many = draw(rng, (4000,), (4096,), 64, 32, 8, 128, "bfloat16")
    narrow = draw(rng, (40,), (4096,), 64, 8, 2, 64, "bfloat16")
    for arrays, words in ((few, "few keys"), (many, "fill the GPU"), (narrow, "block of 64")):
        call: list[Any] = [*tensors(hopper, *arrays, None, None), options_of()]
        assert words in (split.supports(*call) or "")
