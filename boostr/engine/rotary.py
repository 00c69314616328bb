"""Rotary: the rope tables of a model on its backend, grown as sequences do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boostr.backends.base import Backend
from boostr.operands import Rope
from boostr.ops.rope_tables import RopeConfig, decode_tables, prompt_tables, query_factors
from boostr.tensor import Tensor


class _Table:
    """cos, sin and what queries are multiplied by, whose row p is for position p."""

    def __init__(self, config: RopeConfig, backend: Backend) -> None:
        self.config, self.backend = config, backend
        self._known: tuple[Any, ...] | None = None

    def decode(self, length: int, places: Tensor) -> Rope:
        """See `Rotary.decode`."""
        if self._known is None or self._known[0].shape[0] < length:
            rows = max(512, 1 << (length - 1).bit_length())
            tables, factors = decode_tables(self.config, rows), query_factors(self.config, rows)
            self._known = self._uploaded(*tables, factors)
        cos, sin, factors = self._known
        return Rope(cos, sin, places, query_factors=factors)

    def prompt(
        self, positions: np.ndarray, places: Tensor, lengths: Sequence[int], whole: Sequence[int]
    ) -> Rope:
        """See `Rotary.prompt`; `places` are the positions on the backend."""
        longest, config = max(max(whole), int(positions.max()) + 1), self.config
        if not config.depends_on_length or max(whole) <= config.original_positions:
            return self.decode(longest, places)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = [
            tuple(t[positions[a:b]] for t in self._mixed(n, longest))
            for a, b, n in zip(starts[:-1], starts[1:], whole, strict=True)
        ]
        tables = (np.concatenate(part) for part in zip(*rows, strict=True))
        factors = query_factors(config, longest)
        own = None if factors is None else factors[positions]
        each = np.arange(len(positions), dtype=np.int32)
        cos, sin, factors, numbers = self._uploaded(*tables, own, each)
        return Rope(cos, sin, numbers, query_factors=factors)

    def _mixed(self, prompt: int, length: int) -> list[np.ndarray]:
        """Rows of a prompt, then of what was decoded behind it."""
        first, then = prompt_tables(self.config, prompt), decode_tables(self.config, length)
        return [np.concatenate([a, b[prompt:]]) for a, b in zip(first, then, strict=True)]

    def _uploaded(self, *tables: np.ndarray | None) -> tuple[Any, ...]:
        return tuple(None if t is None else Tensor(t, backend=self.backend) for t in tables)


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
        return {name: table.decode(length, positions) for name, table in self._tables.items()}

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
