"""Penalties, filters and the draw, against the oracle and Random123's vectors."""

import math

import numpy as np
import oracles
import pytest
from draws import normal, refused, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.errors import DTypeError, ShapeError
from boostr.ops.sampling import (
    filtered_probabilities,
    greedy,
    penalize,
    philox,
    record_tokens,
    sample,
    seed_words,
)
from boostr.program import capture

V = 101
ROWS = {  # temperature, top_k, top_p, min_p
    "greedy": (0.0, 5, 0.5, 0.1),
    "plain": (1.0, 0, 1.0, 0.0),
    "cold": (0.3, 0, 1.0, 0.0),
    "hot": (5.0, 0, 1.0, 0.0),
    "top-k": (1.0, 7, 1.0, 0.0),
    "top-1": (1.0, 1, 1.0, 0.0),
    "top-k-beyond": (1.0, 1000, 1.0, 0.0),
    "top-p": (1.0, 0, 0.8, 0.0),
    "top-p-tiny": (1.0, 0, 1e-6, 0.0),
    "min-p": (1.0, 0, 1.0, 0.05),
    "min-p-one": (1.0, 0, 1.0, 1.0),
    "all": (0.7, 20, 0.9, 0.02),
}


def f32(*values):
    return np.array(values, np.float32)


def filters(backend, rows):
    table = np.array(list(rows), np.float64).reshape(-1, 4)
    types = (np.float32, np.int32, np.float32, np.float32)
    return tensors(backend, *(table[:, i].astype(t) for i, t in enumerate(types)))


def oracle(x, row):
    temperature, top_k, top_p, min_p = (float(np.float32(v)) for v in row)
    return oracles.sampling_probabilities(
        x, temperature, int(top_k) or None, top_p if top_p < 1 else None, min_p or None
    )


# -- random bits ---------------------------------------------------------------------------------
ONES = 0xFFFFFFFF
KNOWN = [  # kat_vectors of Random123: philox4x32 10
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES,) * 4, (ONES,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def test_philox(backend):
    counters, keys = (np.array([k[i] for k in KNOWN], np.uint32) for i in (0, 1))
    got = philox(*tensors(backend, counters, keys)).numpy()
    assert [" ".join(f"{w:08x}" for w in row) for row in got] == [k[2] for k in KNOWN]


def test_seed_words():
    got = seed_words([0, 1, 2**32, 2**64 - 1, -1, 2**64])
    assert got.dtype == np.uint32
    assert got.tolist() == [[0, 0], [1, 0], [0, 1], [ONES, ONES], [ONES, ONES], [0, 0]]
    assert seed_words([]).shape == (0, 2)


# -- probabilities -------------------------------------------------------------------------------
def test_filtered_probabilities(backend, dtype, rng):
    x = normal(rng, (len(ROWS), V), dtype, 3.0)
    got = filtered_probabilities(Tensor(x, backend=backend), *filters(backend, ROWS.values()))
    assert got.dtype == dtypes.float32
    want = np.stack([oracle(r, o) for r, o in zip(x, ROWS.values(), strict=True)])
    np.testing.assert_array_equal(got.numpy() > 0, want > 0)
    # exp of a difference of size |x|: that many ulps
    scale = np.abs(x.astype(np.float64)).max() * want / min(r[0] or 1 for r in ROWS.values())
    assert_close(got.numpy(), want, dtype="float32", reduce=1, scale=scale)


def test_ties_go_to_the_lowest_id(backend):
    x = f32(*[[1, 2, 2, 0, 2]] * 4)
    rows = [(0, 0, 1, 0), (1, 2, 1, 0), (1, 0, 0.5, 0), (1, 0, 1, 1)]
    got = filtered_probabilities(Tensor(x, backend=backend), *filters(backend, rows)).numpy()
    assert (got > 0).tolist() == [
        [False, True, False, False, False],
        [False, True, True, False, False],
        [False, True, True, False, False],
        [False, True, True, False, True],
    ]


def test_top_p_on_exact_borders(backend):
    x = np.zeros((3, 4), np.float32)
    rows = [(1, 0, p, 0) for p in (0.25, 0.5, 0.75)]
    got = filtered_probabilities(Tensor(x, backend=backend), *filters(backend, rows)).numpy()
    assert (got > 0).sum(1).tolist() == [1, 2, 3]


def test_top_p_of_one_cuts_nothing(backend):
    """The tail of a running float32 sum rounds to its total; off must still mean off."""
    x = f32(0, *[-12] * 5000)
    got = filtered_probabilities(
        Tensor(x[None], backend=backend), *filters(backend, [(1, 0, 1, 0)])
    )
    assert (got.numpy() > 0).all()


def test_masked_logits_are_never_drawn(backend, rng):
    x = np.where(rng.random((64, 10)) < 0.5, -math.inf, normal(rng, (64, 10))).astype(np.float32)
    x[:, 3] = 0
    rows, seeds = filters(backend, [(1.0, 0, 1.0, 0.0)] * 64), Tensor(seed_words(range(64)))
    counters = Tensor(np.arange(64, dtype=np.int32), backend=backend)
    ids = sample(Tensor(x, backend=backend), *rows, seeds.to(backend), counters).numpy()
    assert np.isfinite(x[np.arange(64), ids]).all()


def test_temperatures_whose_reciprocal_is_infinite_take_the_largest(backend, rng):
    """2 ** -149 is the least float32; nan is no temperature."""
    x, heat = normal(rng, (4, V), "float32"), f32(1e-38, 1e-40, 2.0**-149, np.nan)
    off = np.zeros(4)
    options = filters(backend, np.stack([off, off, off + 1, off], 1))[1:]
    seeds = Tensor(seed_words(range(4)), backend=backend)
    counters = Tensor(np.zeros(4, np.int32), backend=backend)
    heats = Tensor(heat, backend=backend)
    got = sample(Tensor(x, backend=backend), heats, *options, seeds, counters)
    assert got.numpy().tolist() == x.argmax(1).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("V", [2, 37, 3000])
def test_rows_without_a_finite_largest_have_no_token(backend, V, dtype, rng):
    """Wherever it is; a row that is masked in part has one, a row that is masked whole has none."""
    x = normal(rng, (8, V), dtype)
    x[0, V - 1], x[1, 0], x[2, V // 2], x[3, V - 1], x[4] = (
        math.nan, math.nan, math.inf, math.inf, -math.inf,
    )  # fmt: skip
    x[5, 1:], x[6, : V - 1] = -math.inf, -math.inf
    t = Tensor(x, backend=backend)
    expected = [-1] * 5 + [0, V - 1, int(x[7].astype(np.float32).argmax())]
    assert greedy(t).tolist() == expected
    for row in (ROWS["greedy"], ROWS["all"]):
        state = tensors(backend, seed_words(range(8)), np.zeros(8, np.int32))
        ids = sample(t, *filters(backend, [row] * 8), *state).tolist()
        assert ids[:7] == expected[:7] and 0 <= ids[7] < V


# -- the draw ------------------------------------------------------------------------------------
def draws(backend, x, row, N, seed=7):
    """N draws from the logits x [V]: rows that differ in their counter alone."""
    logits = Tensor(np.broadcast_to(x, (N, len(x))).copy(), backend=backend)
    seeds = Tensor(seed_words([seed] * N), backend=backend)
    counters = Tensor(np.arange(N, dtype=np.int32), backend=backend)
    return sample(logits, *filters(backend, [row] * N), seeds, counters)


def uniforms(N, seed=7):
    counters = np.zeros((N, 4), np.uint32)
    counters[:, 0] = np.arange(N)
    words = philox(*tensors("numpy", counters, seed_words([seed] * N))).numpy()
    return (words[:, 0] >> 8) / 2.0**24


@pytest.mark.parametrize("name", ROWS)
def test_sample_is_the_inverse_cdf(name, backend, rng):
    """The token at u in the oracle's distribution, candidates in falling order of logits."""
    x, N = normal(rng, (V,), scale=2.0), 300
    got = draws(backend, x, ROWS[name], N)
    assert got.dtype == dtypes.int32 and got.shape == (N,)
    order = np.argsort(-x, kind="stable")
    C, u = np.cumsum(oracle(x.astype(np.float64), ROWS[name])[order]), uniforms(N)
    want = order[(C[None] <= u[:, None]).sum(1)]
    off = got.numpy() != want
    near = np.abs(C[None] - u[:, None]).min(1) < 1e-5  # a float32 sum may fall on the other side
    assert not (off & ~near).any()


@pytest.mark.parametrize("name", ["plain", "top-k", "top-p", "min-p", "hot", "all"])
def test_counts_fit_the_probabilities(name, backend, rng):
    """Chi-square of 4000 fixed draws: mean n, standard deviation sqrt(2 n) over n + 1 bins."""
    x, N = normal(rng, (12,), scale=1.5), 4000
    p = oracle(x.astype(np.float64), ROWS[name])
    counts = np.bincount(draws(backend, x, ROWS[name], N).numpy(), minlength=12)
    assert not counts[p == 0].any()
    expected, n = N * p[p > 0], (p > 0).sum() - 1
    assert ((counts[p > 0] - expected) ** 2 / expected).sum() < n + 4 * math.sqrt(2 * n)


def test_candidates_at_a_round_distance_are_drawn(backend):
    """Two logits lie 2.0 below the highest, where the numpy kernel ended its list too early."""
    x = f32(0, 2, 2, 2, 2, 1, 2, 2, 0, 1, 1)
    expected = 4000 * oracle(x.astype(np.float64), (1, 0, 1, 0))
    counts = np.bincount(draws(backend, x, (1, 0, 1, 0), 4000).numpy(), minlength=len(x))
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()


def test_batched_is_one_at_a_time(backend, rng):
    B = len(ROWS)
    x, seeds = normal(rng, (B, V)), seed_words([1, 1, 2**40 + 3, -5] * (B // 4))
    counters = rng.integers(0, 2**31, B).astype(np.uint32)
    together = sample(*tensors(backend, x), *filters(backend, ROWS.values()),
                      *tensors(backend, seeds, counters)).tolist()  # fmt: skip
    for b, row in enumerate(ROWS.values()):
        alone = sample(*tensors(backend, x[b : b + 1]), *filters(backend, [row]),
                       *tensors(backend, seeds[b : b + 1], counters[b : b + 1]))  # fmt: skip
        assert alone.tolist() == together[b : b + 1]


def test_seed_and_counter_choose_the_draw(backend):
    x = np.zeros(1000, np.float32)
    first, again = (draws(backend, x, ROWS["plain"], 50).tolist() for _ in range(2))
    assert first == again and len(set(first)) > 40
    assert draws(backend, x, ROWS["plain"], 50, seed=8).tolist() != first


def test_a_vocabulary(backend, rng):
    x = normal(rng, (2, 49_152), "bfloat16", 2.0)
    ids = sample(*tensors(backend, x), *filters(backend, [ROWS["greedy"], ROWS["all"]]),
                 *tensors(backend, seed_words([1, 2]), np.zeros(2, np.int32))).tolist()  # fmt: skip
    assert ids[0] == x[0].argmax()
    assert oracle(x[1].astype(np.float64), ROWS["all"])[ids[1]] > 0


def test_no_rows(backend):
    assert draws(backend, np.zeros(5, np.float32), ROWS["all"], 0).shape == (0,)


def test_a_captured_step_equals_eager_ones(backend, rng):
    """Penalize, draw, record, count: what decoding replays for each token."""
    B, steps = 3, 6
    logits, rows = normal(rng, (steps, B, 20)), [ROWS["plain"], ROWS["all"], ROWS["greedy"]]

    def fresh():
        shapes = np.zeros((B, 20), np.uint8), np.zeros((B, 20), np.int32), np.zeros(B, np.int32)
        return tensors(backend, logits[0].copy(), *shapes)

    knobs = tensors(backend, *(np.full(B, v, np.float32) for v in (1.5, 0.3, 0.2)))
    options, seeds = filters(backend, rows), Tensor(seed_words(range(B)), backend=backend)

    def step(x, seen, counts, counter):
        ids = sample(penalize(x, seen, counts, *knobs), *options, seeds, counter)
        record_tokens(ids, seen, counts)
        counter.assign(counter + 1)
        return ids

    eager, state = [], fresh()
    for x in logits:
        state[0].assign(x)
        eager.append(step(*state).tolist())
    held = fresh()
    program = capture(lambda: step(*held), backend)
    captured = [program.outputs.tolist()]
    for x in logits[1:]:
        held[0].assign(x)
        captured.append(program.run().tolist())
    assert captured == eager
    for a, b in zip(held[1:], state[1:], strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# -- refusals ------------------------------------------------------------------------------------
def arguments():
    B, n = 2, 5
    row = tensors("numpy", f32(1, 1))[0]
    table = Tensor(np.zeros((B, n), np.int32), backend="numpy")
    x = table.to("float32")
    k = table[:, 0].contiguous()
    return x, table, row, k, Tensor(seed_words([1, 2]), backend="numpy")


def test_sample_refuses():
    x, _, row, k, seeds = arguments()
    good = [x, row, k, row, row, seeds, k]
    for at, bad, error, words in (
        (0, x[0], ShapeError, ("logits", "[B, V]", "[5]")),
        (0, x[:, :0], ShapeError, ("V > 0", "[2, 0]")),
        (0, x.to("int32"), DTypeError, ("logits", "float", "int32")),
        (1, row[:1], ShapeError, ("temperature", "[2]", "[1]")),
        (1, k, DTypeError, ("temperature", "float32", "int32")),
        (2, row, DTypeError, ("top_k", "int32", "float32")),
        (3, row.to("bf16"), DTypeError, ("top_p", "float32", "bfloat16")),
        (4, row[:0], ShapeError, ("min_p", "[2]", "[0]")),
        (5, seeds[:, :1], ShapeError, ("seeds", "[2, 2]", "[2, 1]")),
        (5, seeds.to("int32"), DTypeError, ("seeds", "uint32", "int32")),
        (6, row, DTypeError, ("counters", "int32 or uint32", "float32")),
    ):
        with refused(error, "sample", *words):
            sample(*good[:at], bad, *good[at + 1 :])
        if at < 5:
            with refused(error, "filtered_probabilities", *words):
                filtered_probabilities(*good[:at], bad, *good[at + 1 : 5])


def test_philox_refuses():
    seeds = arguments()[-1]
    with refused(ShapeError, "philox", "[B, 4]", "[2]"):
        philox(seeds[0], seeds)
    with refused(ShapeError, "philox", "[2, 4]", "[2, 2]"):
        philox(seeds, seeds)
