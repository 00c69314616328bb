"""Steps: forward passes over a pool of blocks: chunks of prompts, and one token for every row.

A decode step is a program, made once for (rows, columns of the block tables, how tokens are chosen)
and kept: sequences join and leave between its runs. Prompts are packed end to end. Where Python
cannot start kernels as fast as they run, their passes are programs too, of sizes that are powers of
two: tokens that fill one up belong to no sequence and are written nowhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from boostr.autograd import no_grad
from boostr.dispatch import is_strict
from boostr.engine.kv_pool import KVPool
from boostr.engine.passes import DecodeStep, Outcome, Part, PromptStep, Variant
from boostr.engine.runner import Runner
from boostr.engine.slots import Penalties, Slots
from boostr.errors import FallbackError
from boostr.program import Program, capture
from boostr.tensor import Tensor

_SEQUENCES = (1, 4, 16, 64, 256)  # of a recorded pass over prompts
_LEAST_TOKENS = 16
_LEAST_POSITIONS = 2048  # of the narrowest block table
_MOST_PROGRAMS = 32


@dataclass(frozen=True)
class _Recorded:
    """A program, and what gives it its inputs."""

    program: Program
    fill: Callable[[Sequence[Part]], None] | None


class Steps:
    """The passes of one model over one pool and its rows."""

    def __init__(self, runner: Runner, pool: KVPool, slots: Slots) -> None:
        self.runner, self.pool, self.slots = runner, pool, slots
        self.backend = runner.backend
        self.penalties: Penalties | None = None
        self._programs: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._met: set[Hashable] = set()
        self.captures = 0
        self.decoding: Program | None = None  # of the last decode step

    def forget_programs(self) -> None:
        """Drop what was recorded over memory that is no more."""
        self._programs.clear()
        self.decoding = None

    def width(self, positions: int) -> int:
        """Columns of the block tables that a pass over so many positions gets."""
        most = _LEAST_POSITIONS
        while most < positions:
            most *= 4
        return max(1, min(-(-most // self.pool.block_size), self.slots.columns))

    def row_bucket(self, count: int) -> int:
        """Rows of the decode step that `count` rows get."""
        return min(_bucket(count, self.backend.row_buckets), self.slots.rows)

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

    # -- decoding --------------------------------------------------------------------------------
    def decode(self, rows: int, positions: int, variant: Variant) -> Outcome:
        """One token more for each row below `rows` that takes part; `positions`: of the longest."""
        B = self.row_bucket(rows)
        width = self.width(positions)
        if variant.penalized:
            self.penalties_for(B - 1)
        key = ("decode", B, width, variant)
        known = self._known(key)
        if known is None:
            return self._record(key, DecodeStep(self, B, width, variant))
        self.decoding = known.program
        return known.program.run()

    # -- prompts ---------------------------------------------------------------------------------
    def hidden(self, parts: Sequence[Part]) -> Tensor:
        """Compute parts of prompts: their hidden states [T, E], and more rows behind them. They may
        be overwritten by the next pass."""
        return self._prompts(parts, None)

    def prefill(self, parts: Sequence[Part], variant: Variant) -> Outcome:
        """Compute parts of prompts; choose the next token of those that have a row: row i is of
        parts[i]."""
        return self._prompts(parts, variant)

    def _prompts(self, parts: Sequence[Part], variant: Variant | None) -> Any:
        if variant is not None and variant.penalized:
            self.penalties_for(max(part.row for part in parts))
        T, B = sum(len(part.ids) for part in parts), len(parts)
        width = self.width(max(part.stop for part in parts))
        recorded = self.backend.records_prefill and not self.runner.rotary.depends_on_length
        if recorded:
            T = max(_LEAST_TOKENS, 1 << (T - 1).bit_length())
            B = min(_bucket(B, _SEQUENCES), self.slots.rows)
        key = ("prefill", T, B, width, variant)
        known = self._known(key)
        if known is not None and known.fill is not None:
            known.fill(parts)
            return known.program.run()
        step = PromptStep(self, T, B, width, variant)
        step.fill(parts)
        if recorded:
            if key in self._met:
                return self._record(key, step, step.fill)
            self._met.add(key)  # one that comes once is not worth recording
        with no_grad():
            return step()

    # -- programs --------------------------------------------------------------------------------
    def _known(self, key: Hashable) -> _Recorded | None:
        found = self._programs.get(key)
        if found is None:
            return None
        composites = found.program.composites() if is_strict() else ()
        if composites:
            raise FallbackError(f"{'; '.join(composites)} (strict mode forbids the composite)")
        self._programs.move_to_end(key)
        return found

    def _record(self, key: Hashable, step: Callable[[], Any], fill: Any = None) -> Any:
        with self.backend.constant_weights():
            program = capture(step, self.backend)
        self.captures += 1
        self._programs[key] = _Recorded(program, fill)
        if fill is None:
            self.decoding = program
        if len(self._programs) > _MOST_PROGRAMS:
            self._programs.popitem(last=False)
        return program.outputs


def _bucket(count: int, sizes: Sequence[int]) -> int:
    """The least of the sizes that holds `count`, or `count` itself."""
    return next((size for size in sizes if size >= count), count)
