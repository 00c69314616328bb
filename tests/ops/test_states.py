"""Rows of what layers keep of a sequence as a whole: who begins reads zeros, who has none writes
nothing."""

from __future__ import annotations

import numpy as np
import pytest
from draws import normal, refused

from boostr import Tensor, ops
from boostr.errors import DTypeError, ShapeError
from boostr.operands import StateRows
from boostr.program import capture

SHAPES = [(5,), (3, 8), (2, 4, 6)]


def state(values, rows, begun, backend):
    made = (None if x is None else Tensor(np.int32(x), backend=backend) for x in (rows, begun))
    return StateRows(values, *made)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_those_of_the_sequences(shape, dtype, backend, rng):
    kept = normal(rng, (6, *shape)).astype("float32")
    kept[4] = np.nan  # of a sequence that has gone
    values = Tensor(kept, backend=backend).to(dtype)
    before = values.numpy().astype("float32")
    rows, begun = [5, 4, 0, -1], [1, 0, 1, 0]
    own = state(values, rows, begun, backend)
    want = before[[5, 4, 0, 0]] * np.reshape([1.0, 0, 1, 0], (-1, *[1] * len(shape)))
    want[1], want[3] = 0, 0
    np.testing.assert_array_equal(ops.read_rows(own).numpy().astype("float32"), want)
    new = normal(rng, (4, *shape)).astype("float32")
    ops.write_rows(own, Tensor(new, backend=backend))
    before[[5, 4, 0]] = Tensor(new[:3], backend=backend).to(dtype).numpy().astype("float32")
    np.testing.assert_array_equal(values.numpy().astype("float32"), before)


def test_only_sequences_that_begin_write_what_begins(backend, rng):
    kept = normal(rng, (4, 3)).astype("float32")
    values = Tensor(kept.copy(), backend=backend)
    new = normal(rng, (3, 3)).astype("float32")
    ops.begin_rows(state(values, [2, 0, -1], [1, 0, 0], backend), Tensor(new, backend=backend))
    kept[0] = new[1]
    np.testing.assert_array_equal(values.numpy(), kept)
    ops.begin_rows(state(values, [2, 0, 1], None, backend), Tensor(new, backend=backend))
    np.testing.assert_array_equal(values.numpy(), kept)


def test_a_program_goes_on_from_what_it_wrote(backend, rng):
    kept = normal(rng, (4, 3)).astype("float32")
    values = Tensor(kept.copy(), backend=backend)
    own = state(values, [2, -1], None, backend)
    program = capture(lambda: ops.write_rows(own, ops.read_rows(own) * 2), backend)
    own.rows.assign(np.int32([2, 0]))
    program.run()
    kept[2], kept[0] = kept[2] * 4, kept[0] * 2
    np.testing.assert_array_equal(values.numpy(), kept)


def test_what_does_not_fit_is_refused(backend):
    values = Tensor(np.zeros((4, 3), "float32"), backend=backend)
    with refused(ShapeError, "write_rows", "[2, 3]", "[2, 4]"):
        ops.write_rows(
            state(values, [0, 1], None, backend),
            Tensor(np.zeros((2, 4), "float32"), backend=backend),
        )
    with refused(DTypeError, "read_rows", "begun", "int32 [B]", "[3]"):
        ops.read_rows(state(values, [0, 1], [1, 1, 1], backend))
