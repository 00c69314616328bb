"""Tables: which blocks of the pools a job holds, column by column, in each group of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boostr.engine.blocks import BlockPool, first_seen
from boostr.engine.job import Job
from boostr.engine.round import Round

MostBlocks = Callable[[int], list[int]]


class Tables:
    """Gives blocks to jobs and takes them back.

    Args:
        pools, windows: see `Scheduler`.   size: of a block, in tokens.
    """

    def __init__(
        self, pools: Sequence[BlockPool], windows: Sequence[int | None], size: int
    ) -> None:
        self._pools, self._windows, self._size = pools, windows, size

    def pass_over(self, job: Job, found: Round) -> None:
        """Give back the blocks that are wholly behind the windows of the next token."""
        for group, window in enumerate(self._windows):
            if window is None:
                continue
            first, table = first_seen(job.computed, window, self._size), job.tables[group]
            passed = range(job.first[group], first)
            if passed:
                self._pools[group].release(table[passed.start : first])
                for column in passed:
                    table[column] = -1
                    found.writes.append((job.row, group, column, -1))  # type: ignore[arg-type]
                job.first[group] = first

    def missing(self, job: Job, group: int, stop: int) -> int:
        """How many blocks it lacks for tokens up to `stop`. A prompt gets all of its blocks at
        once, except where a window will pass them."""
        reach = stop if self._windows[group] is not None else max(stop, len(job.tokens))
        return -(-reach // self._size) - len(job.tables[group])

    def extend(self, job: Job, group: int, count: int, found: Round) -> None:
        """Give it so many blocks, which are free."""
        table = job.tables[group]
        for block in self._pools[group].take(count):
            found.writes.append((job.row, group, len(table), block))  # type: ignore[arg-type]
            table.append(block)

    def join(self, job: Job, other: Job) -> list[tuple[int, int, int]]:
        """Give a job without blocks those of another, behind whose tokens it goes on. In place of
        one that is not full it has its own, which is free: (group, source, block) to be copied."""
        full, rest = divmod(other.computed, self._size)
        copies = []
        for group, (pool, table) in enumerate(zip(self._pools, other.tables, strict=True)):
            first = first_seen(other.computed, self._windows[group], self._size)
            pool.share(table[first:full])
            own = pool.take(1) if rest else []
            copies += [(group, table[full], block) for block in own]
            job.tables.append([-1] * first + table[first:full] + own)
            job.first.append(first)
        return copies

    def room(
        self, prefilling: Sequence[Job], running: Sequence[Job], most: MostBlocks
    ) -> list[int]:
        """Blocks of each group that nobody needs: prompts on their way get all of theirs, and every
        row one more, unless it has all that it may ever hold.

        most: the most blocks of each group that so many tokens hold.
        """
        room = [pool.free for pool in self._pools]
        for job in (*prefilling, *running):
            for group, last in enumerate(job.most):
                room[group] -= job.held(group) < last
        for job in prefilling:
            for group, needed in enumerate(most(len(job.tokens))):
                room[group] -= max(0, needed - job.held(group))
        return room

    def release(self, job: Job) -> None:
        """Take all of them."""
        for pool, table, first in zip(self._pools, job.tables, job.first, strict=True):
            pool.release(table[first:])
        job.tables, job.first = [], []
