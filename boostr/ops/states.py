"""What layers keep of a sequence as a whole, read and written by the rows of a pass's sequences."""

from __future__ import annotations

from boostr import dtypes
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.operands import StateRows
from boostr.ops import core
from boostr.tensor import Tensor


def read_rows(state: StateRows) -> Tensor:
    """What is kept of each sequence: [B, ...], zeros of those that have not begun.

    Of a negative row it is that of another; nothing that comes of it is kept.
    """
    values, rows, begun = state
    _check("read_rows", state)
    found = core.take(values, core.maximum(rows, 0))
    if begun is None:
        return found
    # by `where`, as a row that is given away may hold nan
    return core.where(begun.reshape(-1, *[1] * (values.ndim - 1)) != 0, found, 0)


def write_rows(state: StateRows, new: Tensor) -> None:
    """Keep new [B, ...] of the sequences, in place; negative rows are skipped, others are distinct.

    It is kept in the dtype of the pool.
    """
    values, rows, _ = state
    _check("write_rows", state)
    if new.shape != (rows.size, *values.shape[1:]):
        raise ShapeError(
            f"write_rows: expected [B, ...] = {[rows.size, *values.shape[1:]]}, "
            f"got {list(new.shape)}"
        )
    kept = core.cast(new.detach(), values.dtype)
    values.backend.put_rows(values.data, rows.data, kept.data)


def begin_rows(state: StateRows, new: Tensor) -> None:
    """`write_rows` of the sequences that have not begun; the others keep what they have."""
    if state.begun is not None:
        rows = core.where(core.ne(state.begun, 0), -1, state.rows)
        write_rows(state._replace(rows=rows), new)


def _check(call: str, state: StateRows) -> None:
    for name, x in (("rows", state.rows), ("begun", state.begun)):
        if x is not None and (x.dtype != dtypes.int32 or x.shape != (state.rows.size,)):
            raise DTypeError(f"{call}: {name} must be int32 [B], got {x.dtype}{list(x.shape)}")
    if not state.values.backend.is_contiguous(state.values.data):
        raise BackendError(f"{call}: the rows are written in place and must be contiguous")
