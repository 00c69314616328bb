"""Penalties, biases and the record of tokens that they count, against the oracle."""

import math

import numpy as np
import oracles
import pytest
from draws import normal, refused, strided, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.ops import core
from boostr.ops.sampling import add_bias, penalize, record_tokens
from boostr.program import capture

V = 101


def f32(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("flag", [np.bool_, np.uint8])
def test_penalize(flag, backend, dtype, rng):
    B = 4
    x = normal(rng, (B, V), dtype, 3.0)
    prompts, outputs = rng.integers(0, V, (B, 9)), rng.integers(0, V, (B, 20)) % 7
    seen, counts = np.zeros((B, V), flag), np.zeros((B, V), np.int32)
    for b in range(B):
        seen[b, prompts[b]] = seen[b, outputs[b]] = 1
        counts[b] = np.bincount(outputs[b], minlength=V)
    knobs = f32(1, 1.3, 0.8, 2), f32(0, 0.5, -1, 2), f32(0, 0.25, 0.1, -0.5)
    got = penalize(*tensors(backend, x, seen, counts, *knobs))
    assert got.dtype == dtypes.float32
    ids = np.array([[3, 50, -1], [-7, 0, V - 1], [V, -1, 3], [-1, -1, -1]], np.int32)
    values = normal(rng, (B, 3))
    values[0, 0] = -math.inf
    biased = got + 0.0
    assert add_bias(biased, *tensors(backend, ids, values)) is None
    for b in range(B):
        bias = {t: v for t, v in zip(ids[b], values[b], strict=True) if 0 <= t < V}
        for logits, known in ((got, None), (biased, bias)):
            penalties = (float(k[b]) for k in knobs)
            want = oracles.penalize(x[b], prompts[b], outputs[b], *penalties, known)
            assert_close(logits.numpy()[b], want, dtype="float32", reduce=1, scale=5)


def test_biases_are_read_by_the_program(backend, rng):
    """Ids and values as columns; a row without any."""
    x = normal(rng, (3, V))
    pairs = rng.permutation(V)[:12].reshape(3, 4).astype(np.int32)
    logits, ids = tensors(backend, x.copy(), pairs.copy())
    (values,) = tensors(backend, strided(normal(rng, (3, 2))))
    program = capture(lambda: add_bias(logits, ids[:, 1:3], values), backend)
    want = x.astype(np.float64)
    for turn in range(3):
        chosen = pairs[:, 1:3]
        for b, n in np.argwhere((chosen >= 0) & (chosen < V)):
            want[b, chosen[b, n]] += values.numpy()[b, n]
        np.testing.assert_allclose(logits.numpy(), want, atol=2e-6)
        if turn < 2:
            pairs = rng.permutation(2 * V)[:12].reshape(3, 4).astype(np.int32) - 9
            ids.assign(pairs)
            program.run()
    empty = Tensor(np.zeros((3, 0), np.int32), backend=backend)
    add_bias(logits, empty, empty.to("float32"))
    np.testing.assert_allclose(logits.numpy(), want, atol=2e-6)


@pytest.mark.parametrize("flag", [np.bool_, np.uint8])
def test_record_tokens(flag, backend):
    seen, counts = tensors(backend, np.zeros((3, 5), flag), np.zeros((3, 5), np.int32))
    for ids in ([4, -1, 0], [4, 2, 1]):
        assert record_tokens(Tensor(np.array(ids, np.int32), backend=backend), seen, counts) is None
    assert counts.tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(seen.numpy() > 0, counts.numpy() > 0)


def test_penalties_refuse():
    table = Tensor(np.arange(10, dtype=np.int32).reshape(2, 5), backend="numpy")
    x, k = table.to("float32"), table[:, 0].contiguous()
    row = k.to("float32")
    seen = core.ne(table, 0)
    good = [x, seen, table, row, row, row]
    for at, bad, error, words in (
        (0, x[0], ShapeError, ("logits", "[5]")),
        (1, seen[:1], ShapeError, ("seen", "[2, 5]", "[1, 5]")),
        (1, x, DTypeError, ("seen", "bool or uint8", "float32")),
        (2, x, DTypeError, ("counts", "int32", "float32")),
        (3, row[:1], ShapeError, ("repetition", "[2]", "[1]")),
        (4, k, DTypeError, ("presence", "float32", "int32")),
        (5, row[:1], ShapeError, ("frequency", "[2]", "[1]")),
    ):
        with refused(error, "penalize", *words):
            penalize(*good[:at], bad, *good[at + 1 :])
    for args, error, words in (
        ((x.to("float16"), table, x), DTypeError, ("logits", "float32", "float16")),
        ((x, table[:1], x), ShapeError, ("ids", "[B, N]", "B = 2", "[1, 5]")),
        ((x, k, x), ShapeError, ("ids", "[2]")),
        ((x, x, x), DTypeError, ("ids", "int32", "float32")),
        ((x, table, x[:, :3]), ShapeError, ("values", "[2, 5]", "[2, 3]")),
        ((x, table, table), DTypeError, ("values", "float32", "int32")),
        ((x[:, ::2], table, x), BackendError, ("logits", "contiguous")),
    ):
        with refused(error, "add_bias", *words):
            add_bias(*args)
    for args, error, words in (
        ((k[:1], seen, table), ShapeError, ("ids", "[2]", "[1]")),
        ((row, seen, table), DTypeError, ("ids", "int32", "float32")),
        ((k, seen[0], table), ShapeError, ("seen", "[B, V]", "[5]")),
        ((k, seen, table[:, :3]), ShapeError, ("counts", "[2, 5]", "[2, 3]")),
        ((k, seen[:, ::2], table[:, ::2]), BackendError, ("seen", "contiguous")),
    ):
        with refused(error, "record_tokens", *words):
            record_tokens(*args)
