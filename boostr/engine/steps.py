"""Steps: forward passes over a pool of blocks: chunks of prompts, and one token for every row.

A decode step is a program, made once for (rows, columns of the block tables, how tokens are chosen)
and kept: sequences join and leave between its runs, and what was noted of them in `slots` is
written when the next pass starts. Prompts are packed end to end. Where Python cannot start kernels
as fast as they run, their passes are programs too, of sizes that are powers of two: tokens that
fill one up belong to no sequence and are written nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boostr.engine.kv_pool import KVPool
from boostr.engine.passes import DecodeStep, Outcome, Part, PromptStep, Variant
from boostr.engine.programs import Programs
from boostr.engine.runner import Runner
from boostr.engine.slots import Penalties, Slots
from boostr.program import Program
from boostr.tensor import Tensor

_SEQUENCES = (1, 4, 16, 64, 256)  # of a recorded pass over prompts
_MANY_TOKENS, _MANY_SEQUENCES = 256, 16  # what few programs of a busy engine are recorded for
_LEAST_TOKENS = 16
_LEAST_POSITIONS = 2048  # of the narrowest block table
_MOST_PROGRAMS = 32


class Steps:
    """The passes of one model over one pool and its rows.

    Attributes:
        programs: those that were recorded.   decoding: that of the last decode step.
    """

    def __init__(self, runner: Runner, pool: KVPool, slots: Slots) -> None:
        self.runner, self.pool, self.slots = runner, pool, slots
        self.backend = runner.backend
        self.penalties: Penalties | None = None
        self.programs = Programs(self.backend, _MOST_PROGRAMS)
        self.decoding: Program | None = None

    def forget_programs(self) -> None:
        """Drop what was recorded over memory that is no more."""
        self.programs.forget()
        self.decoding = None

    @property
    def captures(self) -> int:
        """How many programs were ever recorded."""
        return self.programs.captures

    def width(self, positions: int) -> int:
        """Columns of the block tables that a pass over so many positions gets."""
        most = _LEAST_POSITIONS
        while most < positions:
            most *= 4
        return max(1, min(-(-most // self.pool.block_size), self.slots.columns))

    def row_bucket(self, count: int) -> int:
        """Rows of the decode step, or of penalties, that `count` rows get. Behind `sequence_rows`
        are those of prompts computed ahead, which no step takes along."""
        decoded, every = self.backend.sequence_rows, self.slots.rows
        most = min(decoded, every) if count <= decoded else every
        return min(_bucket(count, (*self.backend.row_buckets, most)), most)

    def penalties_for(self, row: int, biases: int = 0) -> Penalties:
        """Room for the penalties of this row, and so many biases."""
        old = self.penalties
        if old is not None and row < old.rows and biases <= old.biases:
            return old
        rows = max(old.rows if old else 0, self.row_bucket(row + 1))
        width = max(old.biases if old else 0, 1 << biases.bit_length())
        made = Penalties(self.backend, rows, self.runner.module.config.vocab_size, width)
        if old is not None:
            made.take_over(old)
        self.penalties = made
        self.forget_programs()
        return made

    def move(self, source: int, target: int) -> None:
        """The sequence in row `source` goes on in row `target`, wherever it stands by now."""
        self.slots.move(source, target)
        self.pool.rows.copy([source], [target])
        if self.penalties is not None:
            self.penalties.move(source, target)

    # -- decoding --------------------------------------------------------------------------------
    def decode(self, rows: int, positions: int, variant: Variant) -> Outcome:
        """One token more for each row below `rows` that takes part; `positions`: of the longest."""
        B = self.row_bucket(rows)
        width = self.width(positions)
        if variant.penalized:
            self.penalties_for(B - 1)
        self.slots.flush(width)
        key = ("decode", B, width, variant)
        outcome, self.decoding = self.programs.step(
            key, lambda: DecodeStep(self, B, width, variant)
        )
        return outcome

    # -- prompts ---------------------------------------------------------------------------------
    def hidden(self, parts: Sequence[Part]) -> Tensor:
        """Compute parts of prompts: their hidden states [T, E], and more rows behind them. They may
        be overwritten by the next pass."""
        return self._prompts(parts, None)

    def prefill(self, parts: Sequence[Part], variant: Variant, busy: bool = False) -> Outcome:
        """Compute parts of prompts; choose the next tokens of their rows, in order.

        busy: other sequences are decoded, so that passes of the same tokens will have now one part
            and now some: all get one program, where so many tokens make its room for more cheap.
        """
        return self._prompts(parts, variant, busy)

    def _prompts(self, parts: Sequence[Part], variant: Variant | None, busy: bool = False) -> Any:
        if variant is not None and variant.penalized:
            self.penalties_for(max((row for part in parts for row in part.rows), default=0))
        self.slots.flush()
        T = sum(len(part.ids) for part in parts)
        B = max(len(parts), sum(len(part.rows) for part in parts))
        width = self.width(max(part.stop for part in parts))
        by_length = self.runner.rotary.depends_on_length
        padded = self.backend.records_prefill and not by_length
        single = T == 1 and not (padded or by_length)  # a step of a deterministic row
        if padded:
            T = max(_LEAST_TOKENS, 1 << (T - 1).bit_length())
            B = max(B, _MANY_SEQUENCES) if busy and T >= _MANY_TOKENS else B
            B = min(_bucket(B, _SEQUENCES), self.slots.rows)
        key = ("prefill", T, B, width, variant)
        return self.programs.over(
            key, lambda: PromptStep(self, T, B, width, variant), parts,
            recorded=padded or single,
        )  # fmt: skip


def _bucket(count: int, sizes: Sequence[int]) -> int:
    """The least of the sizes that holds `count`, or `count` itself."""
    return next((size for size in sizes if size >= count), count)
