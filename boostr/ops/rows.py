"""Rows of device state: what a decode step reads and changes of running sequences, row by row.

The state is int32 [F, R]: a sequence has a column of it, and every field is a row that other ops
read as it lies. An ended or empty sequence has owner -1 and length 0: it writes nothing, sees
nothing and is not stepped. All of it lies on the device, so that a program steps it again and
again, and a sequence ends there without waiting for the host.
"""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.ops import core
from boostr.tensor import Tensor, arange

# The fields; each kernel of `advance_rows` names them again.
IDS = 0  # the token that the next step takes in
POSITIONS = 1  # where it stands
LENGTHS = 2  # keys that it sees, its own among them
OWNERS = 3  # row of the block table; -1: the sequence has ended, or there is none
DRAWS = 4  # tokens drawn so far
LIMITS = 5  # the position at which the sequence ends
ENDS = 6  # tokens that end it, END_IDS of them; -1 where there are fewer
END_IDS = 8
FIELDS = ENDS + END_IDS


def advance_rows(state: Tensor, chosen: Tensor, places: Tensor | None = None) -> None:
    """Make a decode step's outcome the next step's input, in place, and end what has ended.

    Of place r = places[b] with an owner: its id becomes chosen[b]; position, length and draws grow
    by 1. It ends, with owner -1 and length 0, if chosen[b] is negative (the logits were not finite)
    or one of its end tokens, or if its new position is its limit or beyond.

    Args:
        state: int32 [F, R], F >= FIELDS, contiguous; fields from FIELDS on are left alone.
        chosen: int32 [B], B <= R.   places: int32 [B], distinct; those outside of 0..R-1 are
            skipped. None: place b is b.
    """
    if state.dtype != dtypes.int32 or state.ndim != 2 or state.shape[0] < FIELDS:
        raise ShapeError(
            f"advance_rows: state must be int32 [F, R] with F >= {FIELDS}, "
            f"got {state.dtype}{list(state.shape)}"
        )
    if not state.backend.is_contiguous(state.data):
        raise BackendError("advance_rows: state is written in place and must be contiguous")
    if chosen.ndim != 1 or chosen.size > state.shape[1]:
        raise ShapeError(
            f"advance_rows: chosen must be [B] with B <= R = {state.shape[1]}, "
            f"got {list(chosen.shape)}"
        )
    if places is not None and places.shape != chosen.shape:
        raise ShapeError(
            f"advance_rows: places must be as chosen {list(chosen.shape)}, got {list(places.shape)}"
        )
    for name, x in (("chosen", chosen), ("places", places)):
        if x is not None and x.dtype != dtypes.int32:
            raise DTypeError(f"advance_rows: {name} must be int32, got {x.dtype}")
    if chosen.size:
        _advance_rows(state, chosen, places)


def _advance_rows_composite(state: Tensor, chosen: Tensor, places: Tensor | None) -> None:
    R, backend = state.shape[1], state.backend
    place = arange(chosen.size, backend=backend) if places is None else places
    there = (place >= 0) & (place < R)
    old = core.take(state, core.where(there, place, 0), 1)
    position = old[POSITIONS] + 1
    ended = (chosen < 0) | (position >= old[LIMITS])
    for end in range(ENDS, FIELDS):
        ended = ended | core.eq(old[end], chosen)
    new = {
        IDS: chosen,
        POSITIONS: position,
        LENGTHS: core.where(ended, 0, old[LENGTHS] + 1),
        OWNERS: core.where(ended, -1, old[OWNERS]),
        DRAWS: old[DRAWS] + 1,
    }
    live = there & (old[OWNERS] >= 0)
    flat = state.flatten()
    for field, values in new.items():
        backend.put_rows(flat.data, core.where(live, field * R + place, -1).data, values.data)


_advance_rows = Op("advance_rows", _advance_rows_composite)
