"""Rotary: the rope tables of a model on its backend, grown as sequences do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr.backends.base import Backend
from boostr.ops.rope_tables import RopeConfig, decode_tables, prompt_tables
from boostr.tensor import Tensor


class Rotary:
    """Tables whose row p is for position p."""

    def __init__(self, config: RopeConfig, backend: Backend) -> None:
        self.config, self.backend = config, backend
        self._tables: tuple[Tensor, Tensor] | None = None

    def decode(self, length: int) -> tuple[Tensor, Tensor]:
        """cos, sin with at least `length` rows, for tokens that are decoded one by one."""
        if self._tables is None or self._tables[0].shape[0] < length:
            rows = max(512, 1 << (length - 1).bit_length())
            self._tables = self._upload(decode_tables(self.config, rows))
        return self._tables

    def prompt(
        self, positions: np.ndarray, lengths: Sequence[int], prompt_lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """cos, sin and the row of each token, for chunks of prompts packed end to end.

        positions: int [T].   lengths: tokens of each chunk.   prompt_lengths: of the whole prompts,
        on which the tables of some scalings depend.
        """
        longest = max(prompt_lengths)
        if not self.config.depends_on_length or longest <= self.config.original_positions:
            cos, sin = self.decode(longest)
            return cos, sin, Tensor(positions.astype(np.int32), backend=self.backend)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = [
            tuple(t[positions[a:b]] for t in prompt_tables(self.config, n))
            for a, b, n in zip(starts[:-1], starts[1:], prompt_lengths, strict=True)
        ]
        cos, sin = self._upload(tuple(np.concatenate(part) for part in zip(*rows, strict=True)))
        return cos, sin, Tensor(np.arange(len(positions), dtype=np.int32), backend=self.backend)

    def _upload(self, tables: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        cos, sin = tables
        return Tensor(cos, backend=self.backend), Tensor(sin, backend=self.backend)
