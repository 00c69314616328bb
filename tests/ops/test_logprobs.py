"""Log probabilities of chosen and likeliest tokens, against float64 and a whole sort."""

import numpy as np
import oracles
import pytest
from draws import normal, refused, strided, tensors

from boostr import Tensor, dtypes
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops.logprobs import top_logprobs
from boostr.program import capture

KINDS = ("normal", "peaked", "equal", "few", "one", "masked", "wide")


def rows(kind, V, rng):
    """float32 [3, V]: ties, rows with fewer tokens than are asked for, sums of many small terms."""
    x = normal(rng, (3, V), scale=2.5)
    if kind == "peaked":
        x[:, : min(V, 50)] += 12
    elif kind == "equal":
        x[:] = -3.25
    elif kind == "few":
        x[:] = rng.integers(0, 3, (3, V))
        x[x == 0] = -0.0
        x[1, ::2] *= -1  # 0 and -0 are equal
    elif kind == "one":
        x[:], x[:, V // 3] = -9, 0
    elif kind == "masked":
        x[rng.random((3, V)) < 0.5] = -np.inf
        x[1], x[:, V // 2] = -np.inf, 1
    elif kind == "wide":
        x *= 1000
    return x


def truth(x, ids, k):
    """(log p of ids, the k likeliest, theirs), for rows whose largest logit is finite."""
    x = x.astype(np.float64)
    logs = oracles.log_softmax(x)
    best = np.argsort(-x, kind="stable", axis=1)[:, :k]
    known = (ids >= 0) & (ids < x.shape[1])
    chosen = np.where(known, logs[np.arange(len(x)), np.where(known, ids, 0)], np.nan)
    return chosen, best, np.take_along_axis(logs, best, 1)


def check(backend, x, ids, k):
    got = top_logprobs(*tensors(backend, x, ids), k)
    assert [t.dtype for t in got] == [dtypes.float32, dtypes.int32, dtypes.float32]
    compare([t.numpy() for t in got], truth(x, ids, k))


def compare(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    for ours, theirs in ((got[0], want[0]), (got[2], want[2])):
        np.testing.assert_allclose(ours, theirs, rtol=3e-7, atol=1e-5)


@pytest.mark.parametrize("V", [1, 2, 19, 300, 5003])
@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind, V, backend, rng):
    x = rows(kind, V, rng)
    for ids in ([0, V - 1, V // 2], [-1, V, V // 3]):
        for k in sorted({0, 1, min(5, V), min(20, V)}):
            check(backend, x, np.array(ids, np.int32), k)


def test_dtypes(backend, dtype, rng):
    x = normal(rng, (3, 700), dtype, 3.0)
    check(backend, x if dtype != "float64" else x.astype(np.float32).astype(dtype),
          np.array([5, 699, -3], np.int32), 7)  # fmt: skip


@pytest.mark.parametrize("kind", ["normal", "equal"])
def test_a_large_vocabulary(kind, backend, rng):
    x = rows(kind, 262_144, rng)
    check(backend, x, np.array([262_143, 0, 77], np.int32), 4)


def test_rows_without_a_finite_largest(backend, rng):
    x = normal(rng, (5, 99))
    x[0, 50], x[1, 98], x[2], x[3, 7:9] = np.nan, np.inf, -np.inf, np.nan
    ids = np.array([3, 98, 0, 8, 4], np.int32)
    chosen, best, logs = (t.numpy() for t in top_logprobs(*tensors(backend, x, ids), 3))
    assert np.isnan(chosen[:4]).all() and np.isnan(logs[:4]).all() and (best[:4] == -1).all()
    compare([chosen[4:], best[4:], logs[4:]], truth(x[4:], ids[4:], 3))


def test_views_and_no_rows(backend, rng):
    x, ids = normal(rng, (3, 37)), strided(np.array([3, 0, 36], np.int32))
    check(backend, strided(x), ids, 5)
    part = Tensor(x, backend=backend)[1:, 3:]
    got = top_logprobs(part, *tensors(backend, np.array([3, 0], np.int32)), 5)
    compare([t.numpy() for t in got], truth(x[1:, 3:], np.array([3, 0]), 5))
    got = top_logprobs(part[:0], *tensors(backend, np.zeros(0, np.int32)), 5)
    assert [t.shape for t in got] == [(0,), (0, 5), (0, 5)]


def test_a_program_reads_new_logits(backend, rng):
    x, ids = normal(rng, (2, 400)), np.array([3, 7], np.int32)
    held = tensors(backend, x.copy(), ids.copy())
    program = capture(lambda: top_logprobs(*held, 20), backend)
    for _ in range(3):
        x, ids = normal(rng, (2, 400)), rng.integers(-1, 400, 2).astype(np.int32)
        held[0].assign(x)
        held[1].assign(ids)
        compare([t.numpy() for t in program.run()], truth(x, ids, 20))


def test_refuses():
    x, ids = tensors("numpy", np.zeros((2, 5), np.float32), np.zeros(2, np.int32))
    with refused(ShapeError, "top_logprobs", "[B, V]", "[5]"):
        top_logprobs(x[0], ids, 1)
    with refused(ShapeError, "top_logprobs", "ids", "[2]", "[1]"):
        top_logprobs(x, ids[:1], 1)
    with refused(DTypeError, "top_logprobs", "logits", "int32"):
        top_logprobs(x.to("int32"), ids, 1)
    with refused(DTypeError, "top_logprobs", "ids", "int32", "float32"):
        top_logprobs(x, ids.to("float32"), 1)
    for k in (-1, 6):
        with refused(OptionError, "top_logprobs", "k must be 0 to 5", k):
            top_logprobs(x, ids, k)
    with refused(OptionError, "0 to 20", 21):
        top_logprobs(Tensor(np.zeros((1, 99)), "float32", "numpy"), ids[:1], 21)
