"""Rows of device state: what the host notes is on the device after a flush, which uploads once."""

from __future__ import annotations

import numpy as np
import pytest

from boostr.engine.options import SamplingOptions
from boostr.engine.slots import Slots
from boostr.ops import rows as fields
from boostr.ops.sampling import seed_words

ROWS, COLUMNS, GROUPS = 5, 6, 2
OPTIONS = SamplingOptions(temperature=0.7, top_p=0.9, min_p=0.05, top_k=2**31 - 1)
SEED = 2**63 - 5


@pytest.fixture
def slots(where):
    return Slots(where, ROWS, COLUMNS, GROUPS)


@pytest.fixture
def started(where, monkeypatch):
    """What is started on the device: names of calls."""
    calls = []

    def watched(name, own):
        def run(*args):
            calls.append(name)
            return own(*args)

        return run

    for name in ("from_numpy", "put_rows"):
        monkeypatch.setattr(where, name, watched(name, getattr(where, name)))
    return calls


def begin(slots, row):
    slots.admit(row, OPTIONS, SEED)
    slots.activate(row, 9, 2, 30, [7, 8])
    for group in range(GROUPS):
        for column in range(3):
            slots.place(row, group, column, 10 * group + column)


def test_rows_are_empty_at_first(slots):
    state = slots.state.numpy()
    assert (state[fields.OWNERS] == -1).all() and (state[fields.ENDS :] == -1).all()
    assert not state[: fields.OWNERS].any()
    assert all(not value.numpy().any() for value in slots.sampling().values())
    assert (slots.table(1, 4).numpy() == -1).all()


def test_what_is_noted_is_written(slots):
    tables = [slots.table(group, width) for group in range(GROUPS) for width in (2, COLUMNS)]
    sampling = slots.sampling()  # as a program keeps them
    begin(slots, 3)
    slots.flush(2)
    slots.flush(COLUMNS)
    state = slots.state.numpy()
    named = [fields.POSITIONS, fields.LENGTHS, fields.OWNERS, fields.DRAWS, fields.LIMITS]
    assert state[named, 3].tolist() == [8, 9, 3, 2, 30]
    assert state[fields.ENDS :, 3].tolist() == [7, 8, *[-1] * (fields.END_IDS - 2)]
    for name in ("temperature", "top_p", "min_p"):
        assert sampling[name].numpy()[3] == np.float32(getattr(OPTIONS, name))
    assert sampling["top_k"].numpy()[3] == OPTIONS.top_k
    assert (sampling["seeds"].numpy()[3] == seed_words([SEED])[0]).all()
    assert sampling["counters"].numpy()[3] == 2
    assert [t.numpy()[3].tolist() for t in tables] == [
        [0, 1], [0, 1, 2, -1, -1, -1], [10, 11], [10, 11, 12, -1, -1, -1],
    ]  # fmt: skip
    for values in (state, *(t.numpy() for t in tables)):
        others = np.delete(values, 3, axis=1 if values is state else 0)
        assert set(np.unique(others)) <= {0, -1}


def test_a_flush_is_one_upload_and_a_launch_for_each_tensor(slots, started):
    """Of tables those that the next step reads; a pass over prompts has its own."""
    for group, width in ((0, 2), (0, COLUMNS), (1, COLUMNS)):
        slots.table(group, width)
    started.clear()
    begin(slots, 0)
    slots.clear(4)
    for width, calls in ((None, 1), (COLUMNS, 2), (2, 1), (2, 0), (COLUMNS, 0)):
        slots.flush(width)
        assert started == ["from_numpy", *["put_rows"] * calls][: len(started)]
        assert started.count("put_rows") == calls
        started.clear()


def test_a_row_moves_with_its_state_and_tables(slots):
    slots.table(0, COLUMNS)
    begin(slots, 4)
    slots.move(4, 1)
    slots.flush(COLUMNS)
    state, table = slots.state.numpy(), slots.table(0, COLUMNS).numpy()
    assert state[fields.OWNERS].tolist() == [-1, 1, -1, -1, -1]
    assert state[[fields.POSITIONS, fields.LIMITS], 1].tolist() == [8, 30]
    assert table[1, :3].tolist() == [0, 1, 2] and (table[4] == -1).all()
