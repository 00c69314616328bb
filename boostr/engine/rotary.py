"""Rotary: the rope tables of a model on its backend, grown as sequences do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from boostr.backends.base import Backend
from boostr.operands import Rope
from boostr.ops.rope_tables import RopeConfig, decode_tables, prompt_tables
from boostr.tensor import Tensor


class _Table:
    """cos and sin whose row p is for position p."""

    def __init__(self, config: RopeConfig, backend: Backend) -> None:
        self.config, self.backend = config, backend
        self._known: tuple[Tensor, Tensor] | None = None

    def decode(self, length: int) -> tuple[Tensor, Tensor]:
        """At least `length` rows, for tokens that are decoded one by one."""
        if self._known is None or self._known[0].shape[0] < length:
            rows = max(512, 1 << (length - 1).bit_length())
            self._known = self._upload(decode_tables(self.config, rows))
        return self._known

    def prompt(
        self, positions: np.ndarray, places: Tensor, lengths: Sequence[int], whole: Sequence[int]
    ) -> Rope:
        """See `Rotary.prompt`; `places` are the positions on the backend."""
        longest = max(whole)
        if not self.config.depends_on_length or longest <= self.config.original_positions:
            return Rope(*self.decode(longest), places)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = [
            tuple(t[positions[a:b]] for t in prompt_tables(self.config, n))
            for a, b, n in zip(starts[:-1], starts[1:], whole, strict=True)
        ]
        cos, sin = self._upload(tuple(np.concatenate(part) for part in zip(*rows, strict=True)))
        each = Tensor(np.arange(len(positions), dtype=np.int32), backend=self.backend)
        return Rope(cos, sin, each)

    def _upload(self, tables: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        cos, sin = tables
        return Tensor(cos, backend=self.backend), Tensor(sin, backend=self.backend)


class Rotary:
    """The tables of every name that a model's `ropes` has."""

    def __init__(self, ropes: Mapping[str, RopeConfig], backend: Backend) -> None:
        self._tables = {name: _Table(config, backend) for name, config in ropes.items()}

    @property
    def depends_on_length(self) -> bool:
        """Whether tokens are rotated by the length of their sequence."""
        return any(table.config.depends_on_length for table in self._tables.values())

    def decode(self, length: int, positions: Tensor) -> dict[str, Rope]:
        """For tokens at these positions, all below `length`, that are decoded one by one."""
        return {
            name: Rope(*table.decode(length), positions) for name, table in self._tables.items()
        }

    def prompt(
        self,
        positions: np.ndarray,
        places: Tensor,
        lengths: Sequence[int],
        prompt_lengths: Sequence[int],
    ) -> dict[str, Rope]:
        """For chunks of prompts packed end to end.

        positions: int [T]; places: the same on the backend.   lengths: tokens of each chunk.
        prompt_lengths: of the whole prompts, on which the tables of some scalings depend.
        """
        return {
            name: table.prompt(positions, places, lengths, prompt_lengths)
            for name, table in self._tables.items()
        }
