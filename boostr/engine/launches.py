"""Launches: rounds of the scheduler as passes on the device, and what is to be read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from boostr.engine.job import Job
from boostr.engine.passes import Outcome, Part, Variant
from boostr.engine.request import Request
from boostr.engine.round import Chunk, Round
from boostr.engine.scheduler import Scheduler
from boostr.engine.scoring import Scored, Scoring
from boostr.engine.sequence import TokenLogprobs
from boostr.engine.steps import Steps
from boostr.ops import rows as fields


class Reading(NamedTuple):
    """A pass that was started: how its results are read, and whose they are."""

    reads: list[Callable[[], np.ndarray]]
    rows: list[tuple[int, Job, int]]  # row of the results, whose, and its count of preemptions

    def tokens(self) -> Iterator[tuple[Job, int, TokenLogprobs | None]]:
        """What was chosen for those who still have their rows; -1: logits that are not finite.
        Waits for the device."""
        chosen, *logprobs = [read() for read in self.reads]
        tokens = chosen.tolist()
        for at, job, preemptions in self.rows:
            if job.state != "running" or job.preemptions != preemptions:
                continue
            token, wanted, own = tokens[at], job.owner.sequence.options.logprobs, None
            if logprobs and wanted is not None and token >= 0:
                own = TokenLogprobs.of_row(token, tuple(logprobs), at, wanted)
            yield job, token, own


class Launches:
    """Starts what a scheduler plans. Job owners are requests."""

    def __init__(self, steps: Steps, scheduler: Scheduler) -> None:
        self._steps, self._slots, self._scheduler = steps, steps.slots, scheduler

    def place(self, plan: Round) -> None:
        """Rows and block tables as the round wants them."""
        slots = self._slots
        for job, source, target in plan.moves:
            self._move(job, source, target)
        for row in plan.cleared:
            slots.clear(row)
        for row, group, column, block in plan.writes:
            slots.place(row, group, column, block)
        if plan.cleared:
            self._close_up(plan.decoding)

    def run(self, plan: Round) -> Iterator[Reading | Scored]:
        """Start the round's passes, one behind the other."""
        alone = [job for job in plan.decoding if job.deterministic]
        if together := [job for job in plan.decoding if not job.deterministic]:
            yield self._decode(together)
        yield from map(self._decode_alone, alone)
        scored = [chunk for chunk in plan.chunks if isinstance(chunk.job.owner, Scoring)]
        prompts = [chunk for chunk in plan.chunks if not isinstance(chunk.job.owner, Scoring)]
        for chunk in prompts:
            if chunk.job.deterministic:  # a pass of one size, whoever else is at work
                yield from self._prefill([chunk], busy=False)
        if shared := [chunk for chunk in prompts if not chunk.job.deterministic]:
            yield from self._prefill(shared, busy=bool(plan.decoding))
        if scored:
            yield self._score(scored)
        self._steps.pool.copy([copy[1:] for copy in plan.copies])
        alike = [(chunk.job.row, job.row) for chunk in plan.chunks for job in chunk.alike]
        if alike:
            self._steps.pool.rows.copy(*zip(*alike, strict=True))

    def _close_up(self, jobs: Sequence[Job]) -> None:
        """Move rows down where a step gets narrower by it."""
        least = self._steps.row_bucket(len(jobs))
        while (moved := self._scheduler.move_down(least)) is not None:
            job, source = moved
            assert job.row is not None
            self._move(job, source, job.row)

    def _move(self, job: Job, source: int, target: int) -> None:
        self._steps.move(source, target)
        if not isinstance(job.owner, Scoring):
            self._slots.admit(target, job.owner.sequence.options, job.owner.seed)

    def _decode(self, jobs: Sequence[Job]) -> Reading:
        variant, rows, longest = Variant(), 0, 0
        for job in jobs:
            variant |= job.owner.variant
            rows, longest = max(rows, job.row or 0), max(longest, job.computed)
        outcome = self._steps.decode(rows + 1, longest, variant)
        return self._reading(outcome, [(job.row or 0, job, job.preemptions) for job in jobs])

    def _decode_alone(self, job: Job) -> Reading:
        """The next token as that of a prompt that ends here: decode steps leave the row alone."""
        assert job.row is not None
        self._slots.give(job.row, fields.DRAWS, job.accepted)
        chunk = Chunk(job, len(job.tokens) - 1, len(job.tokens), final=True)
        part = self._part(chunk, job.prompt_length, [job.row])
        outcome = self._steps.prefill([part], job.owner.variant)
        return self._reading(outcome, [(0, job, job.preemptions)])

    def _prefill(self, chunks: Sequence[Chunk], busy: bool) -> Iterator[Reading]:
        variant, parts, ends = Variant(), [], []
        for chunk in chunks:
            begin = [chunk.job, *chunk.alike] if chunk.final else []
            ends += [(len(ends) + i, job, job.preemptions) for i, job in enumerate(begin)]
            rows = [self._begin(job) for job in begin]
            for job in begin or [chunk.job]:
                variant |= job.owner.variant
            parts.append(self._part(chunk, chunk.job.prompt_length, rows))
        if ends or self._slots.backend.records_prefill:  # one program, whether a prompt ends or not
            outcome = self._steps.prefill(parts, variant, busy)
            if ends:
                yield self._reading(outcome, ends)
        else:
            self._steps.hidden(parts)

    def _score(self, chunks: Sequence[Chunk]) -> Scored:
        parts = [  # rotated by the whole length, of which the last token is not computed
            self._part(chunk, chunk.job.prompt_length + 1, []) for chunk in chunks
        ]
        hidden = self._steps.hidden(parts)
        made = Scored.of_pass(self._steps.runner, hidden, chunks)
        for chunk in chunks:
            if chunk.final:  # nothing is decoded behind it
                self._scheduler.finish(chunk.job)
        return made

    @staticmethod
    def _part(chunk: Chunk, whole: int, rows: Sequence[int]) -> Part:
        ids = np.array(chunk.job.tokens[chunk.start : chunk.stop], np.int32)
        home = chunk.job.row
        assert home is not None
        return Part(ids, chunk.start, whole, chunk.job.tables, rows, home)

    def _begin(self, job: Job) -> int:
        """The job's row takes part from now on; its number."""
        request: Request = job.owner
        row = job.row
        assert row is not None
        options, sequence = request.sequence.options, request.sequence
        if not job.preemptions:
            request.cached = job.cached
        self._slots.admit(row, options, request.seed)
        if job.deterministic:
            self._slots.give(row, fields.DRAWS, job.accepted)
        else:
            last = job.prompt_length + job.limit - 1
            ends = sorted(sequence.eos_ids)
            self._slots.activate(row, len(job.tokens), job.accepted, last, ends)
        penalties = self._steps.penalties
        if options.penalizes:
            penalties = self._steps.penalties_for(row, len(options.logit_bias))
        if penalties is not None and row < penalties.rows:
            penalties.admit(row, options, job.tokens, job.prompt_length)
        return row

    def _reading(self, outcome: Outcome, rows: list[tuple[int, Job, int]]) -> Reading:
        tensors = [outcome.chosen, *(outcome.logprobs or ())]
        return Reading([self._slots.backend.start_read(t.data) for t in tensors], rows)
