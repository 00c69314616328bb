"""Prefixes: which full blocks of tokens are computed, or are just being computed, and by whom.

The key of a block is chained (see `blocks.chain`), so it says all tokens up to the block's end; the
first one's parent is made of the model's fingerprint and the job's salt. All groups of layers use
the same keys, each in its own pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from boostr.engine.blocks import BlockPool, chain, first_seen
from boostr.engine.job import Job


class Prefixes:
    """The prefix cache over the pools of all groups.

    Args:
        size: of a block, in tokens.   root: fingerprint of the model.
        enabled: False: nothing is ever found.
        cut: tokens of a chunk of a deterministic job, a multiple of `size`: it shares chunks of
            prompts alone, as a whole, and with other such jobs, whose keys and values have the same
            bits.
    """

    def __init__(
        self,
        pools: Sequence[BlockPool],
        windows: Sequence[int | None],
        size: int,
        root: bytes,
        enabled: bool,
        cut: int = 0,
    ) -> None:
        self._pools, self._windows, self._size = pools, windows, size
        self._root, self._enabled, self._cut = root, enabled, cut
        self._computing: dict[bytes, Job] = {}

    def hash(self, job: Job) -> None:
        """Make the keys of the full blocks of its tokens that it has not got yet."""
        if job.keys is None:
            return
        start, stop = len(job.keys), self._shared(job, len(job.tokens)) // self._size
        if start == stop:
            return
        parent = job.keys[-1] if job.keys else self._first_parent(job)
        ids = job.tokens[start * self._size : stop * self._size]
        job.keys.extend(chain(parent, ids, self._size))

    def _first_parent(self, job: Job) -> bytes:
        said = b"%b %d %b" % (self._root, job.deterministic, job.salt)
        return hashlib.blake2b(said, digest_size=16).digest()

    def _shared(self, job: Job, stop: int) -> int:
        """How many of the first `stop` tokens it may find, or leave for others."""
        if job.deterministic:
            stop = min(stop, job.prompt_length)
            return stop - stop % self._cut
        return stop

    def hit(self, job: Job) -> int:
        """How many blocks of a waiting job are computed, so that at least one token is left to do.

        Groups with a window need only what the next token sees.
        """
        if job.keys is None and self._enabled and job.shares:
            job.keys = []
        self.hash(job)
        keys = job.keys or []
        count = min(len(keys), (len(job.tokens) - 1) // self._size)
        found = None
        while found != count:  # a group that lacks a block lowers the count for all
            found = count
            for pool, window in zip(self._pools, self._windows, strict=True):
                count = self._computed(pool, window, keys, count)
            count = self._shared(job, count * self._size) // self._size
        return count

    def _computed(
        self, pool: BlockPool, window: int | None, keys: Sequence[bytes], count: int
    ) -> int:
        """The largest number of blocks up to `count` that leaves none out which is seen."""
        if window is None:
            missing = (j for j in range(count) if pool.find(keys[j]) is None)
            return next(missing, count)
        while True:
            seen = range(first_seen(count * self._size, window, self._size), count)
            missing = next((j for j in reversed(seen) if pool.find(keys[j]) is None), None)
            if missing is None:
                return count
            count = missing

    def is_coming(self, job: Job) -> bool:
        """Whether an admitted job is just computing blocks that a waiting one would use.

        It is to wait for the last of them: who computes one computes those before it, too.
        """
        if job.awaited in self._computing:
            return True
        count, wanted = self.hit(job), (len(job.tokens) - 1) // self._size
        coming = (key for key in reversed((job.keys or [])[count:wanted]) if key in self._computing)
        job.awaited = next(coming, None)
        return job.awaited is not None

    def tables(self, job: Job, count: int) -> list[list[int]]:
        """The first `count` columns for each group, as far as the next token sees them: blocks that
        have one holder more now."""
        tables = []
        for pool, window in zip(self._pools, self._windows, strict=True):
            first = first_seen(count * self._size, window, self._size)
            keys = (job.keys or [])[first:count]
            blocks = [block for key in keys if (block := pool.find(key)) is not None]
            pool.share(blocks)
            tables.append([-1] * first + blocks)
        return tables

    def begin(self, job: Job) -> None:
        """An admitted job computes all its full blocks that were not found."""
        for key in (job.keys or [])[job.entered :]:
            self._computing.setdefault(key, job)

    def enter(self, job: Job, stop: int) -> None:
        """The full blocks of its first `stop` tokens are computed."""
        if job.keys is None:
            return
        self.hash(job)
        for column in range(job.entered, min(stop // self._size, len(job.keys))):
            key = job.keys[column]
            for pool, table in zip(self._pools, job.tables, strict=True):
                if table[column] >= 0:
                    pool.enter(table[column], key)
            self._arrived(job, key)
            job.entered = column + 1

    def end(self, job: Job) -> None:
        """A job leaves: what it has not computed yet is nobody's."""
        for key in (job.keys or [])[job.entered :]:
            self._arrived(job, key)

    def _arrived(self, job: Job, key: bytes) -> None:
        if self._computing.get(key) is job:
            del self._computing[key]

    def forget(self, root: bytes) -> None:
        """The model is another one now; jobs are for the caller to deal with."""
        self._root = root
        self._computing.clear()
        for pool in self._pools:
            pool.forget()
