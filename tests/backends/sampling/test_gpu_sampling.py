"""Draws, argmax and penalties on a GPU: whole vocabularies, ties, borders in crowded bins."""

import numpy as np
import oracles
import pytest
from draws import normal, strided, tensors

from boostr import Tensor, dispatch, dtypes
from boostr.ops import core
from boostr.ops.sampling import (
    add_bias,
    filtered_probabilities,
    greedy,
    penalize,
    philox,
    record_tokens,
    sample,
    seed_words,
)  # fmt: skip

ROWS = [  # temperature, top_k, top_p, min_p
    (0, 5, 0.5, 0.1), (1, 0, 1, 0), (0.5, 0, 1, 0), (5, 0, 1, 0), (1, 7, 1, 0), (1, 1, 1, 0),
    (1, 10**6, 1, 0), (1, 0, 0.8, 0), (1, 0, 1e-6, 0), (1, 0, 1, 0.05), (1, 0, 1, 1),
    (0.7, 20, 0.9, 0.02), (1, 40, 0.9, 0), (0.8, 3000, 0.95, 0), (5, 0, 0.9, 0),
    (5, 900, 0.9, 1e-3), (5, 30_000, 0.9, 1e-3), (20, 0, 0.999, 0.5), (1, 0, 0.99999, 0),
    (1, 5, 1, 0.2), (2, 2000, 1, 0.01), (1, 0, 1e-39, 0),
]  # fmt: skip
KINDS = ["normal", "peaked", "equal", "few", "one", "masked"]


def logits(kind, V, dtype, rng):
    """[V]: what fills one bin of the histogram, or one value, or none."""
    x = normal(rng, V, scale=2.5)
    if kind == "peaked":
        x[: min(V, 50)] += 12
    elif kind == "equal":
        x[:] = 1.5
    elif kind == "few":
        x[:] = rng.integers(0, 3, V)
    elif kind == "one":
        x[:] = -12
        x[V // 3] = 0
    elif kind == "masked":
        x[rng.random(V) < 0.5] = -np.inf
        x[V // 2] = 1
    return x.astype(dtypes.parse(dtype))


def options(rows):
    table = np.array(rows, np.float64)
    types = (np.float32, np.int32, np.float32, np.float32)
    return [table[:, i].astype(t) for i, t in enumerate(types)]


def on_numpy(op, *arrays):
    """What the first backend makes of it, by composites where it must."""
    with dispatch.strict(False):
        return op(*tensors("numpy", *arrays)).numpy()


def oracle(x, row):
    temperature, top_k, top_p, min_p = (float(np.float32(v)) for v in row)
    return oracles.sampling_probabilities(
        x.astype(np.float64), temperature, int(top_k) or None,
        top_p if top_p < 1 else None, min_p or None,
    )  # fmt: skip


def check_draws(backend, x, rng):
    """The kept set and the token at u against float64; alone and together the same."""
    B, order = len(ROWS), np.argsort(-x.astype(np.float64), kind="stable")
    args = tensors(backend, np.repeat(x[None], B, 0), *options(ROWS))
    p = filtered_probabilities(*args).numpy()
    seeds, counters = seed_words([3] * B), rng.integers(0, 2**31, B).astype(np.uint32)
    state = tensors(backend, seeds, counters)
    ids = sample(*args, *state).numpy()
    blocks = np.zeros((B, 4), np.uint32)
    blocks[:, 0] = counters
    u = (on_numpy(philox, blocks, seeds)[:, 0] >> 8) / 2.0**24
    for b, row in enumerate(ROWS):
        want = oracle(x, row)
        # at a border of top-p or min-p float32 weights may fall on the other side
        slack = 2 + want.size * 2e-3 if row[2] < 1 or row[3] else 0
        ours, theirs = p[b] > 0, want > 1e-37
        differ = abs(int(ours.sum()) - int(theirs.sum()))
        assert differ <= slack, row
        change = differ / min(ours.sum(), theirs.sum())  # of the sum that all are divided by
        off = np.abs(p[b] - want)[ours & theirs].max() / want.max()
        assert off < 1e-4 + change, (row, off)
        assert abs(p[b].sum(dtype=np.float64) - 1) < 1e-4, row
        C = np.cumsum(want[order])
        place = int(np.flatnonzero(order == ids[b])[0])
        below = C[place - 1] if place else 0.0
        assert below - 3e-5 - change <= u[b] <= C[place] + 3e-5 + change, (row, place)
        alone = [t[b : b + 1] for t in (*args, *state)]
        assert sample(*alone).tolist() == [ids[b]], row


CASES = [(kind, V) for kind in KINDS for V in (11, 1025, 5000, 128_256)]
CASES += [("normal", 262_144), ("equal", 262_144)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "V"), CASES)
def test_draws(kind, V, dtype, gpu, rng):
    check_draws(gpu, logits(kind, V, dtype, rng), rng)


def test_the_same_tokens_as_numpy(gpu, rng):
    """Over many draws of a row: the numbers are the same, and so are the borders."""
    V, B = 3000, 64
    x = np.repeat(logits("normal", V, "float32", rng)[None], B, 0)
    rows = options([ROWS[11 + b % 4] for b in range(B)])
    state = seed_words(range(B)), np.arange(B, dtype=np.int32)
    ours = sample(*tensors(gpu, x, *rows, *state)).numpy()
    theirs = on_numpy(sample, x, *rows, *state)
    assert (ours != theirs).sum() <= 1  # one may lie on a border that rounding moves


def test_rows_without_a_finite_largest_have_no_token(gpu, rng):
    x = normal(rng, (len(ROWS), 20_000))
    x[:3, 77:90], x[3, 19_999], x[4], x[5, :9] = np.nan, np.inf, -np.inf, -np.inf
    state = seed_words(range(len(ROWS))), np.zeros(len(ROWS), np.int32)
    ids = sample(*tensors(gpu, x, *options(ROWS), *state)).numpy()
    assert (ids[:5] == -1).all() and (ids[5:] >= 0).all() and (ids < 20_000).all()


def test_philox(gpu, rng):
    blocks, keys = (rng.integers(0, 2**32, (70, n), np.uint32) for n in (4, 2))
    got = philox(*tensors(gpu, blocks, keys)).numpy()
    np.testing.assert_array_equal(got, on_numpy(philox, blocks, keys))


SHAPES = [(1, 1), (3, 5), (2, 2049), (3, 1028), (2, 70_001), (40, 33), (4, 128_256),
          (70, 32_000)]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_argmax_takes_the_first(shape, dtype, gpu, rng):
    """Of ties and of nan, over whatever number of blocks; strided rows too."""
    x = normal(rng, shape, dtype)
    several = x.copy()
    several[:, rng.integers(0, shape[1], 20)] = 9
    nans = x.copy()
    nans[:, shape[1] // 2] = nans[:, -1] = np.nan
    for values in (x, several, nans, np.full_like(x, -np.inf), strided(x)):
        got = core.argmax(Tensor(values, backend=gpu), -1).numpy()
        np.testing.assert_array_equal(got, values.astype(np.float32).argmax(-1))
        finite = np.isfinite(values.astype(np.float32).max(-1))
        got_finite = greedy(Tensor(values, backend=gpu)).numpy()
        np.testing.assert_array_equal(got_finite, np.where(finite, got, -1))


def test_argmax_of_views(gpu, rng):
    """Rows that begin anywhere in their words."""
    x = normal(rng, (3, 37), "bfloat16")
    part = Tensor(x, backend=gpu)[1:, 3:]
    np.testing.assert_array_equal(core.argmax(part, -1).numpy(), x[1:, 3:].argmax(-1))


@pytest.mark.parametrize("V", [1024, 999, 4099, 128_256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_penalize(V, dtype, gpu, rng):
    B = 3
    x = normal(rng, (B, V), dtype, 3.0)
    seen = rng.integers(0, 2, (B, V)).astype(np.uint8)
    counts = (rng.integers(0, 5, (B, V)) * seen).astype(np.int32)
    knobs = [np.array(v, np.float32) for v in ((1, 1.3, 0.8), (0, 0.5, 2), (0, 0.25, 0.1))]
    r, p, f = (k[:, None].astype(np.float64) for k in knobs)
    wide = x.astype(np.float64)
    want = np.where(seen > 0, np.where(wide > 0, wide / r, wide * r), wide)
    want = want - (counts > 0) * p - counts * f
    got = penalize(*tensors(gpu, x, seen, counts, *knobs))
    np.testing.assert_allclose(got.numpy(), want, atol=5e-6)
    ids = np.stack([rng.permutation(V + 60)[:300] - 30 for _ in range(B)]).astype(np.int32)
    values = normal(rng, ids.shape)
    add_bias(got, *tensors(gpu, strided(ids), values))
    for b, n in np.argwhere((ids >= 0) & (ids < V)):
        want[b, ids[b, n]] += values[b, n]
    np.testing.assert_allclose(got.numpy(), want, atol=5e-6)


def test_record_tokens(gpu, rng):
    """Rows share words of `seen`; a negative id and views are right too."""
    B, V = 5, 7
    seen, counts = np.zeros((B, V), np.uint8), rng.integers(0, 4, (B, V)).astype(np.int32)
    ids = np.array([6, 0, -1, 3, 0], np.int32)
    flags, numbers = tensors(gpu, seen, counts)
    for _ in range(2):
        record_tokens(Tensor(ids, backend=gpu), flags, numbers)
    for b, token in enumerate(ids):
        if token >= 0:
            seen[b, token] = 1
            counts[b, token] += 2
    np.testing.assert_array_equal(flags.numpy(), seen)
    np.testing.assert_array_equal(numbers.numpy(), counts)
