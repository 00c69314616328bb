"""FixedRows: sequences in rows and blocks of their own, without a scheduler: for measuring the
passes of a model, and for looking at its logits with keys and values kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from boostr import ops
from boostr.engine.options import SamplingOptions
from boostr.engine.passes import Part, Variant
from boostr.engine.runner import Runner
from boostr.engine.slots import Slots
from boostr.engine.steps import Steps
from boostr.ops import rows as fields
from boostr.program import Program
from boostr.tensor import Tensor


class FixedRows:
    """Rows for `count` sequences of up to `length` tokens.

    Attributes:
        steps: their programs.   run_ahead: steps to start before one is read; 0 keeps the logits
            of `step` in step with its ids.
    """

    def __init__(self, runner: Runner, count: int, length: int, run_ahead: int = 0) -> None:
        self.runner, self.run_ahead, self.length = runner, run_ahead, length
        pool = runner.new_pool()
        columns = -(-length // pool.block_size)
        pool.grow([count * columns] * len(pool.windows), count)
        slots = Slots(runner.backend, count, columns, len(pool.windows))
        self.steps = Steps(runner, pool, slots)
        self._tables = [
            [list(range(row * columns, (row + 1) * columns))] * len(pool.windows)
            for row in range(count)
        ]
        for row, tables in enumerate(self._tables):
            for group, blocks in enumerate(tables):
                for column, block in enumerate(blocks):
                    slots.place(row, group, column, block)
        self._variant, self._active, self._longest = Variant(), 0, 0
        self._pending: deque[Callable[[], np.ndarray]] = deque()
        self._logits: Tensor | None = None

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Write prompts into the first rows; logits [B, V] after their last tokens.

        starts: how many tokens of each prompt its row has already.   chunk: tokens of one pass.
        """
        starts = starts or [0] * len(prompts)
        spans = [(i, s, len(p)) for i, (p, s) in enumerate(zip(prompts, starts, strict=True))]
        found: dict[int, Tensor] = {}
        for parts in _passes(spans, chunk or self.runner.backend.prefill_chunk):
            ends = {i: row for i, (row, _, stop) in enumerate(parts) if stop == len(prompts[row])}
            made = [self._part(prompts[row], row, start, stop) for row, start, stop in parts]
            if not ends:
                self.steps.hidden(made)
                continue
            logits = self.steps.prefill(made, Variant()).logits
            for index, row in ends.items():
                kept = self.runner.backend.copy(logits[index : index + 1].data)
                found[row] = Tensor.wrap(kept, self.runner.backend)
        return ops.core.concat([found[row] for row in range(len(prompts))])

    def _part(self, prompt: Sequence[int], row: int, start: int, stop: int) -> Part:
        ids = np.asarray(prompt[start:stop], np.int32)
        return Part(ids, start, len(prompt), self._tables[row], [-1], row)

    def begin(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        options: Sequence[SamplingOptions] | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Decode from these newest tokens on, which stand at these positions and are not yet kept.

        prompts: all tokens so far but the newest, for penalties.
        """
        slots, self._active, self._longest = self.steps.slots, len(ids), max(positions)
        chosen = options or [SamplingOptions()] * len(ids)
        self._variant = Variant(
            any(own.temperature > 0 for own in chosen), any(own.penalizes for own in chosen)
        )
        self._pending.clear()
        for row in range(len(ids), slots.rows):  # of an earlier beginning
            slots.give(row, fields.OWNERS, -1)
            slots.give(row, fields.LENGTHS, 0)
        for row, (token, position, own) in enumerate(zip(ids, positions, chosen, strict=True)):
            slots.admit(row, own, own.seed or 0)
            slots.activate(row, position + 1, 1, 2**31 - 1, ())
            slots.give(row, fields.IDS, token)
            slots.give(row, fields.POSITIONS, position)
            if own.penalizes and prompts is not None:
                tokens = [*prompts[row], token]
                self.steps.penalties_for(row, len(own.logit_bias)).admit(
                    row, own, tokens, len(prompts[row])
                )
        slots.flush()

    def step(self) -> tuple[np.ndarray, Tensor]:
        """The next step: (chosen ids int32 [B], logits [B, V], valid until the next call).

        With `run_ahead`, logits are those of the newest step that was started.
        """
        while len(self._pending) <= self.run_ahead:
            self._longest += 1
            outcome = self.steps.decode(
                self._active, min(self._longest, self.length), self._variant
            )
            self._pending.append(self.runner.backend.start_read(outcome.chosen.data))
            self._logits = outcome.logits
        assert self._logits is not None
        return self._pending.popleft()()[: self._active], self._logits[: self._active]

    @property
    def program(self) -> Program:
        """Of the last step."""
        assert self.steps.decoding is not None
        return self.steps.decoding


def _passes(
    spans: Sequence[tuple[int, int, int]], chunk: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Spans (row, start, stop) cut so that each forward pass has at most `chunk` tokens."""
    parts: list[tuple[int, int, int]] = []
    room = chunk
    for row, start, stop in spans:
        while start < stop:
            take = min(room, stop - start)
            parts.append((row, start, start + take))
            start, room = start + take, room - take
            if room == 0:
                yield parts
                parts, room = [], chunk
    if parts:
        yield parts
