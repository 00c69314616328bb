"""Forward passes that choose tokens: one token of every row, or parts of prompts packed end to end.

Calling a pass runs it, or records it; what differs from run to run lies in tensors. A pass knows
nothing of the program that keeps it: a cycle would hold its memory until the garbage collector
comes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from boostr import ops
from boostr.nn.batch import Batch
from boostr.ops import core
from boostr.ops import rows as fields
from boostr.ops.sampling import add_bias, penalize, record_tokens, sample
from boostr.tensor import Tensor, full

if TYPE_CHECKING:
    from boostr.engine.slots import Penalties
    from boostr.engine.steps import Steps

MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Variant:
    """How a pass chooses tokens: drawn or greedy, with penalties, with their log-probabilities."""

    sampled: bool = False
    penalized: bool = False
    logprobs: bool = False

    def __or__(self, other: Variant) -> Variant:
        return Variant(
            self.sampled or other.sampled,
            self.penalized or other.penalized,
            self.logprobs or other.logprobs,
        )


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence that are computed now.

    Attributes:
        ids: int32 [n].   start: position of the first.   whole: tokens of the whole prompt.
        tables: its blocks in each group.
        rows: whose next token is chosen behind them; of -1 it is told, and goes nowhere.
        home: the sequence's row, for what layers keep of it as a whole.
    """

    ids: np.ndarray
    start: int
    whole: int
    tables: Sequence[Sequence[int]]
    rows: Sequence[int]
    home: int

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


class Outcome(NamedTuple):
    """What a pass gives; the next run of its program overwrites it.

    Attributes:
        chosen: int32 [B], -1 where logits are not finite.   logits: [B, V].
        logprobs: see `ops.top_logprobs`; None where they were not asked for.
    """

    chosen: Tensor
    logits: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor] | None


class DecodeStep:
    """One token more for each of the first B rows that takes part."""

    def __init__(self, steps: Steps, rows: int, width: int, variant: Variant) -> None:
        self._module, self._pool, self._variant = steps.runner.module, steps.pool, variant
        slots = steps.slots
        self._state = slots.state
        self._ids, self._positions, self._lengths, self._owners = (
            slots.field(number, rows)
            for number in (fields.IDS, fields.POSITIONS, fields.LENGTHS, fields.OWNERS)
        )
        groups = range(len(steps.pool.windows))
        self._tables = [slots.table(group, width)[:rows] for group in groups]
        self._cu = steps.runner.tensor(np.arange(rows + 1))
        self._ropes = steps.runner.rotary.decode(width * steps.pool.block_size, self._positions)
        self._sampling = {name: value[:rows] for name, value in slots.sampling().items()}
        self._penalties = steps.penalties.first(rows) if steps.penalties else None

    def __call__(self) -> Outcome:
        views = self._pool.views(self._tables, self._positions, self._owners, self._lengths)
        states = self._pool.rows.views(self._owners)
        batch = Batch(self._ids, self._positions, self._cu, self._ropes, views, states)
        logits = self._module.head(self._module.hidden(batch))
        outcome = _choose(logits, self._variant, self._sampling, self._penalties)
        if self._variant.penalized and self._penalties is not None:
            theirs = core.where(self._owners >= 0, outcome.chosen, -1)  # others step by themselves
            record_tokens(theirs, self._penalties.seen, self._penalties.counts)
        ops.advance_rows(self._state, outcome.chosen)
        return outcome


class PromptStep:
    """At most T tokens of at most B prompts, into the pool. Without a variant it gives their hidden
    states [T, E]; with one the first tokens of at most B rows, which take part from then on.
    """

    def __init__(
        self, steps: Steps, tokens: int, sequences: int, width: int, variant: Variant | None
    ) -> None:
        T, B, self._width, groups = tokens, sequences, width, len(steps.pool.windows)
        self._runner, self._pool, self._variant = steps.runner, steps.pool, variant
        self._slots, self._penalties = steps.slots, steps.penalties
        sizes = [T, T, T, B + 1, B, B, B, B, B, *([B * width] * groups)]
        fillers = np.array([0, 0, -1, 0, 0, 0, -1, -1, 0, *[-1] * groups], np.int32).repeat(sizes)
        self._empty, self._host = fillers, fillers.copy()  # what one upload a pass brings over
        self._inputs = steps.runner.tensor(fillers.copy())
        spans = list(pairwise([0, *np.cumsum(sizes).tolist()]))
        self._fields = [self._host[start:end] for start, end in spans]
        parts = [self._inputs[start:end] for start, end in spans]
        self._ids, self._positions, self._owners, self._cu, self._lengths = parts[:5]
        self._last, self._places, self._homes, self._begun = parts[5:9]
        self._tables = [part.reshape(B, width) for part in parts[9:]]
        self._ropes = None

    def fill(self, parts: Sequence[Part]) -> None:
        """Say what the next run computes."""
        self._host[:] = self._empty
        ids, positions, owners, cu, lengths, last, places, homes, begun, *tables = self._fields
        stop = rows = 0
        for index, part in enumerate(parts):
            start, stop = stop, stop + len(part.ids)
            ids[start:stop], owners[start:stop] = part.ids, index
            positions[start:stop] = np.arange(part.start, part.stop)
            cu[index + 1 :], lengths[index] = stop, part.stop
            homes[index], begun[index] = part.home, part.start > 0
            for row in part.rows:
                last[rows], places[rows] = stop - 1, row
                rows += 1
            for table, known in zip(tables, part.tables, strict=True):
                blocks = known[: self._width]
                table[index * self._width : index * self._width + len(blocks)] = blocks
        self._inputs.assign(self._host)
        rotary = self._runner.rotary
        if rotary.depends_on_length:
            counts, whole = [len(part.ids) for part in parts], [part.whole for part in parts]
            self._ropes = rotary.prompt(positions[:stop], self._positions, counts, whole)
        elif self._ropes is None:
            self._ropes = rotary.decode(self._width * self._pool.block_size, self._positions)

    def __call__(self) -> Outcome | Tensor:
        assert self._ropes is not None
        views = self._pool.views(self._tables, self._positions, self._owners, self._lengths)
        states = self._pool.rows.views(self._homes, self._begun)
        batch = Batch(self._ids, self._positions, self._cu, self._ropes, views, states)
        module, slots = self._runner.module, self._slots
        hidden = module.hidden(batch)
        if self._variant is None:
            return hidden
        logits = module.head(core.take(hidden, self._last))
        rows = core.maximum(self._places, 0)
        sampling = slots.sampling() if self._variant.sampled else {}
        taken = {name: core.take(value, rows) for name, value in sampling.items()}
        penalties = self._penalties if self._variant.penalized else None
        own = penalties.of(rows) if penalties else None
        outcome = _choose(logits, self._variant, taken, own)
        if penalties is not None:
            every = full((penalties.rows,), -1, "int32", slots.backend)
            slots.backend.put_rows(every.data, self._places.data, outcome.chosen.data)
            record_tokens(every, penalties.seen, penalties.counts)
        ops.advance_rows(slots.state, outcome.chosen, self._places)
        return outcome


def _choose(
    logits: Tensor, variant: Variant, sampling: dict[str, Tensor], penalties: Penalties | None
) -> Outcome:
    """The next tokens of rows with these options."""
    likely = logits
    if variant.penalized and penalties is not None:
        likely = penalize(logits, *penalties.of_tokens())
        add_bias(likely, penalties.bias_ids, penalties.bias)
    chosen = sample(likely, **sampling) if variant.sampled else ops.greedy(likely)
    if not variant.logprobs:
        return Outcome(chosen, logits, None)
    count = min(MOST_LOGPROBS, logits.shape[1])
    return Outcome(chosen, logits, ops.top_logprobs(logits, chosen, count))
