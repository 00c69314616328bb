"""Steps of rows of device state, against a loop over the rows."""

import numpy as np
import oracles_rows
import pytest
from draws import refused, tensors

from boostr import Tensor
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.ops import rows
from boostr.ops.rows import advance_rows
from boostr.program import capture


def i32(*values):
    return np.array(values, np.int32)


def draw(rng, R, fields=rows.FIELDS):
    """A state in which some rows are empty, some at their limits and some have end tokens."""
    state = rng.integers(0, 50, (fields, R)).astype(np.int32)
    state[rows.OWNERS] = np.where(rng.random(R) < 0.3, -1, rng.permutation(R))
    state[rows.LIMITS] = state[rows.POSITIONS] + rng.integers(0, 4, R)
    ends = state[rows.ENDS : rows.FIELDS]
    ends[rng.random(ends.shape) < 0.7] = -1
    return state


def test_each_way_to_end(backend):
    state = np.full((rows.FIELDS, 7), -1, np.int32)
    state[: rows.ENDS].T[:] = (3, 10, 11, 5, 1, 99)
    state[rows.LIMITS, 1:3] = 11, 12
    state[rows.ENDS + 7, 3] = state[rows.ENDS, 4] = 42
    state[rows.OWNERS, 6] = -1
    held, chosen = tensors(backend, state.copy(), i32(7, 7, 7, 42, 42, -1, 7))
    assert advance_rows(held, chosen) is None
    got = held.numpy()
    assert got[rows.OWNERS].tolist() == [5, -1, 5, -1, -1, -1, -1]
    assert got[rows.LENGTHS].tolist() == [12, 0, 12, 0, 0, 0, 11]
    assert got[rows.IDS].tolist() == [7, 7, 7, 42, 42, -1, 3]
    assert got[rows.POSITIONS].tolist() == [11] * 6 + [10]
    assert got[rows.DRAWS].tolist() == [2] * 6 + [1]
    np.testing.assert_array_equal(got[rows.LIMITS :], state[rows.LIMITS :])


@pytest.mark.parametrize("fields", [rows.FIELDS, rows.FIELDS + 3])
@pytest.mark.parametrize(("B", "R"), [(0, 0), (0, 4), (1, 1), (3, 9), (64, 64), (150, 400)])
def test_rows(B, R, fields, backend, rng):
    state = draw(rng, R, fields)
    chosen = rng.integers(-1, 50, B).astype(np.int32)
    places = rng.permutation(R)[:B].astype(np.int32)
    places[rng.random(B) < 0.2] = -1
    places[1:2] = R  # no row of the state
    for where in (None, places):
        held, ids, index = tensors(backend, state.copy(), chosen, where)
        advance_rows(held, ids, index)
        np.testing.assert_array_equal(held.numpy(), oracles_rows.advance_rows(state, chosen, where))


def test_views(backend, rng):
    """Chosen and places as columns, one of them within the state itself."""
    state = draw(rng, 8, rows.FIELDS + 1)
    state[rows.FIELDS] = 5, 1, -1, 2, 0, 9, 4, 3
    (held,) = tensors(backend, state.copy())
    pairs = rng.integers(0, 50, (8, 2)).astype(np.int32)
    (both,) = tensors(backend, pairs)
    advance_rows(held, both[:, 1], held[rows.FIELDS])
    want = oracles_rows.advance_rows(state, pairs[:, 1], state[rows.FIELDS])
    np.testing.assert_array_equal(held.numpy(), want)


def test_a_program_steps_until_all_have_ended(backend, rng):
    """What ended stays as it was, however often the program runs."""
    state = draw(rng, 20)
    state[rows.LIMITS] = state[rows.POSITIONS] + rng.integers(1, 6, 20)
    chosen = rng.integers(0, 50, 20).astype(np.int32)
    held, ids = tensors(backend, state.copy(), chosen.copy())
    program = capture(lambda: advance_rows(held, ids), backend)
    state = oracles_rows.advance_rows(state, chosen)  # a capture runs
    for _ in range(7):
        np.testing.assert_array_equal(held.numpy(), state)
        chosen = rng.integers(0, 50, 20).astype(np.int32)
        ids.assign(chosen)
        program.run()
        state = oracles_rows.advance_rows(state, chosen)
    assert (held.numpy()[rows.OWNERS] == -1).all()


def test_refuses():
    state, ids = tensors("numpy", np.zeros((rows.FIELDS, 3), np.int32), i32(1, 2))
    with refused(ShapeError, "advance_rows", "F >= 14", "int32[13, 3]"):
        advance_rows(state[:-1], ids)
    with refused(ShapeError, "advance_rows", "int32 [F, R]", "float32"):
        advance_rows(state.to("float32"), ids)
    with refused(BackendError, "advance_rows", "state", "contiguous"):
        advance_rows(state[:, :2], ids)
    with refused(ShapeError, "advance_rows", "B <= R = 3", "[4]"):
        advance_rows(state, Tensor(i32(1, 2, 3, 4), backend="numpy"))
    with refused(ShapeError, "advance_rows", "chosen", "[2, 1]"):
        advance_rows(state, ids.reshape(2, 1))
    with refused(ShapeError, "advance_rows", "places", "[2]", "[1]"):
        advance_rows(state, ids, ids[:1])
    with refused(DTypeError, "advance_rows", "chosen", "int32", "float32"):
        advance_rows(state, ids.to("float32"))
    with refused(DTypeError, "advance_rows", "places", "int32", "float32"):
        advance_rows(state, ids, ids.to("float32"))
