"""RowPool: what layers keep of a sequence as a whole, a row of it for each sequence.

Programs read and write rows by number, so a sequence's row is the one that `Slots` has for it. A
row is not cleared when it is given away: a sequence that begins reads zeros in place of it (see
`StateRows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr.backends.base import Backend
from boostr.nn.states import ByRow, State, row_bytes
from boostr.operands import StateRows
from boostr.ops import core
from boostr.tensor import Tensor, zeros


class RowPool:
    """Rows for the layers of a model.

    Attributes:
        count: rows; none before `grow`.   row_bytes: of a row in all layers; 0: they keep none.
    """

    def __init__(
        self, states: Sequence[Sequence[State]], backend: Backend, activations: np.dtype
    ) -> None:
        self._backend, self._activations = backend, activations
        by_row = {i: [s for s in kept if isinstance(s, ByRow)]
                  for i, kept in enumerate(states)}  # fmt: skip
        self._states = {layer: kept for layer, kept in by_row.items() if kept}
        every = [state for kept in self._states.values() for state in kept]
        self.row_bytes = sum(row_bytes(state, activations) for state in every)
        self._rows: dict[int, list[Tensor]] = {}
        self.count = 0

    @property
    def unshared(self) -> str | None:
        """Why sequences with the same beginning cannot share it, if they cannot: a row is known at
        the last token only."""
        for layer, kept in self._states.items():
            return f"layer {layer} keeps {kept[-1]} of a sequence as a whole"
        return None

    def grown(self, count: int) -> dict[int, list[Tensor]]:
        """That many rows, in which the present ones are as they are."""
        if count == self.count:
            return self._rows
        made = {}
        for layer, kept in self._states.items():
            made[layer] = [
                zeros((count, *shape), dtype or self._activations, self._backend)
                for state in kept
                for shape, dtype in state.tensors
            ]
            for new, old in zip(made[layer], self._rows.get(layer, ()), strict=False):
                new[: len(old)].assign(old)
        return made

    def take(self, rows: dict[int, list[Tensor]], count: int) -> None:
        """Have these, which `grown` made."""
        self._rows, self.count = rows, count

    def views(self, rows: Tensor, begun: Tensor | None = None) -> dict[int, tuple[StateRows, ...]]:
        """For each layer what a forward pass over sequences in these rows reads and writes, see
        `StateRows`."""
        return {
            layer: tuple(StateRows(values, rows, begun) for values in kept)
            for layer, kept in self._rows.items()
        }

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Row targets[i] becomes what row sources[i] is: to move a sequence, to continue it twice,
        or to keep a state that may be wanted back. Behind the programs that were started before."""
        if not self._rows:
            return
        read, written = (
            Tensor(np.asarray(rows, np.int32), backend=self._backend) for rows in (sources, targets)
        )
        for kept in self._rows.values():
            for values in kept:
                self._backend.put_rows(values.data, written.data, core.take(values, read).data)
