"""Scheduler: which jobs run next, in which rows and blocks. Integers and lists only.

A round is one decode step of every running row, then chunks of prompts up to a budget. Everything a
round says is launched in order, so a block or row that was given back may be another job's in the
next program: later writers are launched later on the same stream. For the same reason the scheduler
never waits for results; the engine reports tokens with `accept` when it has read them.

The rules: jobs are admitted first come, first served; running rows get blocks before prompts do;
out of blocks, the job that arrived last gives up its row and goes back to the queue, to be computed
again from the tokens it has. So the first to arrive always gets on, and nobody starves. A pass over
prompts takes along some for which there is no row to decode them in yet: they ride nearly for free,
and have one when the next is given back. Jobs of one prompt begin with the first of them: it is
computed once, in blocks that they share but for the last, of which each gets a copy.

A deterministic job's passes are made of its own tokens alone, and always of the same: its prompt is
cut at multiples of `cut`, and the next token waits until the one before it is known. One that loses
its row makes its output again from the first token on.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Sequence

from boostr.engine.blocks import BlockPool, most_blocks
from boostr.engine.job import Job
from boostr.engine.prefixes import Prefixes
from boostr.engine.round import Chunk, Round
from boostr.engine.tables import Tables
from boostr.errors import BackendError, OptionError


def _order(job: Job) -> int:
    return job.order


class Scheduler:
    """Plans rounds for jobs that share pools of blocks. For one thread at a time.

    Args:
        pools: of each group of layers, with blocks of one size; none: rows are the only limit.
        windows: of each group: a token at position p sees those after p - window; None: all.
        rows: of the device's state, in which jobs decode.   ahead: rows behind these, of prompts
            that are computed before there is one to decode them in.
        prefill_tokens: the most prompt tokens of a round.   chunk: those of one job.
        beside: the most prompt tokens of a round in which rows decode, which wait for them; None:
            prefill_tokens.
        root: fingerprint of the model, under which prefixes are shared.
        share_prefixes: False: every job computes all of its tokens.
    """

    def __init__(
        self,
        pools: Sequence[BlockPool],
        windows: Sequence[int | None],
        rows: int,
        prefill_tokens: int,
        root: bytes,
        share_prefixes: bool = True,
        chunk: int = 512,
        beside: int | None = None,
        ahead: Sequence[int] = (),
    ) -> None:
        sizes = {pool.size for pool in pools} or {1}
        if len(pools) != len(windows) or len(sizes) > 1:
            raise OptionError("Scheduler: one pool for each window, all with blocks of one size")
        if min(rows, prefill_tokens, chunk) < 1:
            raise OptionError("Scheduler: rows, prefill_tokens and chunk start at 1")
        self.pools, self.windows, self.size = list(pools), list(windows), sizes.pop()
        self.rows, self.prefill_tokens, self.chunk = rows, prefill_tokens, chunk
        self.beside = min(prefill_tokens, beside or prefill_tokens)
        self.cut = self.beside - self.beside % self.size
        sharing = share_prefixes and bool(pools)
        self._prefixes = Prefixes(self.pools, self.windows, self.size, root, sharing, self.cut)
        self._tables = Tables(self.pools, self.windows, self.size)
        self._free_rows, self._ahead = [*range(rows), *ahead], len(ahead)  # the rows: a heap
        self._waiting: deque[Job] = deque()  # these three in order of arrival
        self._prefilling: list[Job] = []
        self._running: list[Job] = []
        self._arrivals = 0
        self._cleared: list[int] = []
        self._lost: set[int] = set()  # rows whose jobs the plan in progress has preempted
        self._refused: tuple[int, list[int]] | None = None  # whose order, and the room then

    def grow(self, counts: Sequence[int], rows: int) -> None:
        """Make it that many blocks in each pool, and rows."""
        for pool, count in zip(self.pools, counts, strict=True):
            pool.grow(count)
        for row in range(self.rows, rows):
            heapq.heappush(self._free_rows, row)
        self.rows = max(self.rows, rows)

    @property
    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not (self._waiting or self._prefilling or self._running)

    # --- jobs come and go ---
    def blocks_for(self, length: int) -> list[int]:
        """For each group the most blocks that a job of `length` tokens ever holds."""
        return most_blocks(length, self.windows, self.size, min(self.chunk, self.prefill_tokens))

    def submit(self, job: Job) -> None:
        """Put a new job into the queue.

        Raises OptionError for one that can never run: no token, no limit, more blocks than all, a
        deterministic one of chunks that are too long here.
        """
        if job.order >= 0:
            raise BackendError(f"a job is submitted once; this one is {job.state}")
        if not job.tokens or job.limit <= job.accepted:
            raise OptionError(
                f"a job needs a token and a limit above its output, got {len(job.tokens)} tokens, "
                f"{job.accepted} of output, limit {job.limit}"
            )
        if job.deterministic and not 0 < self.cut <= self.chunk:
            raise OptionError(
                f"a deterministic prompt is computed {self.cut} tokens at a time; here a chunk has "
                f"{self.chunk} at most; give the keys and values more memory"
            )
        job.most = self.blocks_for(job.prompt_length + job.limit - 1)  # the last is not computed
        for pool, needed in zip(self.pools, job.most, strict=True):
            if needed > pool.count:
                raise OptionError(
                    f"a prompt of {job.prompt_length} tokens and {job.limit} new ones need "
                    f"{needed} blocks of {self.size}, there are {pool.count}; shorten the prompt, "
                    "lower max_tokens, or give the keys and values more memory"
                )
        job.order, job.launched = self._arrivals, job.accepted
        self._arrivals += 1
        self._waiting.append(job)

    def accept(self, job: Job, token: int) -> None:
        """A running job's next token was read. One that has all its tokens must then be finished.

        Raises BackendError when no step of it is in flight.
        """
        tokens = job.tokens
        known = len(tokens)
        if job.state != "running" or known - job.prompt_length >= job.launched:
            raise BackendError(f"a token for a job that is {job.state} and has none in flight")
        tokens.append(token)
        # Of a row that ended on the device the steps in flight write nothing. That this token came
        # proves that those before it are written.
        if not known % self.size:
            self._prefixes.enter(job, known)

    def finish(self, job: Job) -> None:
        """A job has ended: its row and blocks are free. Raises BackendError if it has no row."""
        if job.row is None:
            raise BackendError(f"a job that is {job.state} cannot finish; cancel it")
        self._vacate(job)
        job.state = "done"

    def cancel(self, job: Job) -> None:
        """A job is not wanted any more, in whatever state it is."""
        if job.state == "waiting":
            self._waiting.remove(job)
        elif job.row is not None:
            self._vacate(job)
        job.state = "done"

    def rehash(self, root: bytes) -> None:
        """The model has changed: what is computed serves nobody else. Those who run go on."""
        self._prefixes.forget(root)
        for job in (*self._prefilling, *self._running):
            job.keys = None
        for job in self._waiting:
            job.keys = None  # made when its turn comes

    def move_down(self, least: int) -> tuple[Job, int] | None:
        """Give the running job in the highest row, if that is `least` or above, the lowest free
        row below it; the job and the row that it had. None: there is nothing to gain."""
        if not self._free_rows or not self._running:
            return None
        job = max(self._running, key=lambda job: (not self._is_ahead(job), job.row))
        row = job.row
        if row is None or row < least or self._is_ahead(job) or self._free_rows[0] > row:
            return None
        job.row = heapq.heapreplace(self._free_rows, row)
        return job, row

    # --- rounds ---
    def plan(self) -> Round:
        """The next round; its steps count as launched."""
        found = Round()
        self._lost.clear()
        self._decode(found)
        self._prefill(found)
        found.cleared, self._cleared = self._cleared, []
        if self._lost:
            found.leave_out(self._lost)
        for chunk in found.chunks:  # only now: a program does not read what it writes
            self._prefixes.enter(chunk.job, chunk.stop)
        return found

    def _decode(self, found: Round) -> None:
        decoding = found.decoding
        rows = self.rows
        for job in self._running:  # who is preempted meanwhile is behind this one
            if job.row >= rows and not self._descend(job, found):  # type: ignore[operator]
                continue
            if job.deterministic and job.launched > job.accepted:
                continue
            if job.computed == job.pause and not self._proceed(job, found):
                continue
            job.computed += 1
            job.launched += 1
            decoding.append(job)

    def _is_ahead(self, job: Job) -> bool:
        """Whether it has a row that does not decode."""
        return job.row is not None and job.row >= self.rows

    def _descend(self, job: Job, found: Round) -> bool:
        """Give a job that was computed ahead a row to decode in, if one is free."""
        source = job.row
        if source is None or self._lost or not self._free_rows or self._free_rows[0] >= self.rows:
            return False
        row = job.row = heapq.heapreplace(self._free_rows, source)
        if row in self._cleared:  # it is written over, and not to be cleared behind that
            self._cleared.remove(row)
        found.moves.append((job, source, row))
        return True

    def _proceed(self, job: Job, found: Round) -> bool:
        """Blocks for the tokens up to the next `pause`; False: it decodes nothing now."""
        if job.launched >= job.limit or not self._cover(job, job.computed + 1, found):
            return False
        block_end = (job.computed // self.size + 1) * self.size
        job.pause = min(block_end, job.prompt_length + job.limit - 1)
        return True

    def _prefill(self, found: Round) -> None:
        budget = self.beside if found.decoding else self.prefill_tokens
        for job in list(self._prefilling):
            if job.state == "prefilling" and budget:
                budget -= self._next_chunk(job, budget, found)
        self._let_in(budget, found)

    def _let_in(self, budget: int, found: Round) -> None:
        """Admit who waits, in order of arrival."""
        place, looked_at = 0, min(len(self._waiting), self.rows + self._ahead)
        while place < looked_at and self._has_row(found) and not self._lost:
            job = self._waiting[place]
            if self._was_refused(job):
                break
            end = found.end_of(job.same)
            if end is None and self._is_coming(job):
                place += 1  # what it needs is there soon; meanwhile others may pass
                continue
            if end is not None:
                if not self._join(job, end, found):
                    break
            elif not (self._may_begin(job, budget, found) and self._admit(job, found)):
                break
            del self._waiting[place]
            looked_at -= 1
            if end is None:
                budget -= self._next_chunk(job, budget, found)

    def _has_row(self, found: Round) -> bool:
        """Whether there is a row to decode in, or another one and a pass."""
        free = self._free_rows
        return bool(free) and (free[0] < self.rows or bool(found.chunks))

    def _may_begin(self, job: Job, budget: int, found: Round) -> bool:
        """Whether there is a row to decode it in, or a pass that takes all of it along."""
        if budget and self._free_rows[0] < self.rows:
            return True
        return len(job.tokens) <= min(budget, self.chunk) and not job.deterministic

    def _is_coming(self, job: Job) -> bool:
        """Whether somebody is just computing what this job would use."""
        return job.same in self._prefilling or self._prefixes.is_coming(job)

    def _next_chunk(self, job: Job, budget: int, found: Round) -> int:
        """Plan the next tokens of a prompt; how many."""
        start = job.computed
        most = self.cut if job.deterministic else min(budget, self.chunk)
        stop = min(len(job.tokens), start + most)
        if stop - start > budget or not self._cover(job, stop, found):
            return 0
        final = stop == len(job.tokens)
        found.chunks.append(Chunk(job, start, stop, final))
        job.computed = stop
        if final:
            self._prefilling.remove(job)
            self._run(job)
        return stop - start

    def _admit(self, job: Job, found: Round) -> bool:
        """Give a waiting job a row and the blocks that are computed, if there is room for all of
        its tokens."""
        room = self._room()
        count = self._prefixes.hit(job)
        job.tables = self._prefixes.tables(job, count)
        job.first = [table.count(-1) for table in job.tables]
        needed = self.blocks_for(len(job.tokens))
        left = self._room()  # some of the blocks it found were free
        if any(n - job.held(g) > left[g] for g, n in enumerate(needed)):
            self._tables.release(job)
            self._refused = (job.order, room)
            return False
        job.computed, job.entered, job.state = count * self.size, count, "prefilling"
        self._seat(job, found)
        self._prefixes.begin(job)
        insort(self._prefilling, job, key=_order)
        return True

    def _join(self, job: Job, end: Chunk, found: Round) -> bool:
        """Let a waiting job go on from the end of its leader's prompt, if there is room for that.
        It came later, so it is preempted before its leader."""
        room = self._room()
        if end.stop % self.size and any(left < 1 for left in room):
            self._refused = (job.order, room)
            return False
        copies = self._tables.join(job, end.job)
        job.computed, job.entered = end.stop, end.stop // self.size
        job.keys = None if end.job.keys is None else [*end.job.keys]
        self._seat(job, found)
        found.copies += [(job.row, *copy) for copy in copies]  # type: ignore[misc]
        end.alike.append(job)
        self._run(job)
        return True

    def _seat(self, job: Job, found: Round) -> None:
        """Give a job with its first blocks the lowest free row."""
        if not job.preemptions:
            job.cached = job.computed
        row = job.row = heapq.heappop(self._free_rows)
        for group, table in enumerate(job.tables):
            found.writes += [(row, group, column, block) for column, block in enumerate(table)]

    def _run(self, job: Job) -> None:
        """All its tokens are computed, and the next one is chosen."""
        job.launched += 1
        job.pause = job.computed
        job.state = "running"
        insort(self._running, job, key=_order)

    def _was_refused(self, job: Job) -> bool:
        """Whether there is no more room than when this job found too little."""
        if self._refused is None or self._refused[0] != job.order:
            return False
        return all(now <= then for now, then in zip(self._room(), self._refused[1], strict=True))

    def _room(self) -> list[int]:
        """See `Tables.room`."""
        return self._tables.room(self._prefilling, self._running, self.blocks_for)

    # --- blocks of a job ---
    def _cover(self, job: Job, stop: int, found: Round) -> bool:
        """Give a job its blocks for tokens up to `stop`, after taking those it sees no more. False:
        there were none, and it was preempted."""
        self._tables.pass_over(job, found)
        for group in range(len(self.pools)):
            missing = self._tables.missing(job, group, stop)
            if missing > 0:
                if not self._make_free(missing, group, job):
                    return False
                self._tables.extend(job, group, missing, found)
        return True

    def _make_free(self, count: int, group: int, job: Job) -> bool:
        """Preempt the youngest until `count` blocks are free; False: `job` itself was."""
        while self.pools[group].free < count and len(self._prefilling) + len(self._running) > 1:
            youngest = max((*self._prefilling[-1:], *self._running[-1:]), key=_order)
            self._lost.add(youngest.row)  # type: ignore[arg-type]
            self._preempt(youngest)
            if youngest is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        """Back to the queue, with the tokens that are accepted; its full blocks keep their keys."""
        self._vacate(job)
        job.state = "waiting"
        job.preemptions += 1
        if job.deterministic:
            del job.tokens[job.prompt_length :]
        job.launched = job.accepted
        place = 0
        while place < len(self._waiting) and self._waiting[place].order < job.order:
            place += 1
        self._waiting.insert(place, job)

    def _vacate(self, job: Job) -> None:
        """Take a job's row and blocks."""
        (self._running if job.state == "running" else self._prefilling).remove(job)
        self._prefixes.end(job)
        self._tables.release(job)
        self._cleared.append(job.row)  # type: ignore[arg-type]
        heapq.heappush(self._free_rows, job.row)  # type: ignore[arg-type]
        job.row, job.computed, job.entered = None, 0, 0
