"""How large the pool of keys and values, and of what else layers keep, is made: what is asked for,
within a budget of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from boostr import env
from boostr.backends.base import Backend
from boostr.engine.blocks import most_blocks
from boostr.engine.job import Job
from boostr.engine.kv_pool import KVPool
from boostr.errors import OptionError

_SHARE = 0.25  # of the memory that is free
_UNKNOWN = 2 << 30  # bytes, where a device does not say what is free
_LEAST_POSITIONS = 2048


class Room(NamedTuple):
    """Blocks of each group; the most tokens of a prompt in one pass, which layers with a window
    keep beside what it sees; rows, where layers keep something of a sequence as a whole."""

    counts: list[int]
    chunk: int
    rows: int


def wanted_room(
    pool: KVPool, lengths: Sequence[int], backend: Backend, given: int | None = None
) -> Room:
    """Room for jobs of so many tokens: for all of them where the budget allows it, at least for
    the largest. An explicit budget is never exceeded: prompts are cut finer for it, and what the
    pool has may become less.

    given: the budget in bytes; None: that of BOOSTR_KV_MEMORY, else a share of what is free.

    Raises:
        OptionError: the largest does not fit into an explicit budget.
    """
    explicit = env.KV_MEMORY.bytes() if given is None else given
    sizes = [*map(pool.block_bytes, range(len(pool.counts))), pool.rows.row_bytes]
    chunk, kept = backend.prefill_chunk, [*pool.counts, pool.rows.count]
    alone, together = _needs(pool, lengths, chunk, backend)
    if explicit is not None:
        while _bytes(sizes, alone) > explicit and chunk > pool.block_size:
            chunk = max(chunk // 2, pool.block_size)
            alone, together = _needs(pool, lengths, chunk, backend)
        if _bytes(sizes, _most(alone, kept)) > explicit:
            kept = [0] * len(kept)
    least = -(-_LEAST_POSITIONS // pool.block_size)
    ample = [_rounded(max(count, least)) for count in together[:-1]] + [together[-1]]
    levels = [_most(level, kept) for level in (alone, together, ample)]
    if levels[-1] == kept:
        return Room(kept[:-1], chunk, kept[-1])
    budget = _free_share(backend, pool.nbytes) if explicit is None else explicit
    if explicit is not None and _bytes(sizes, levels[0]) > explicit:
        raise OptionError(
            f"kv_memory ({env.KV_MEMORY.name}) allows {env.human_bytes(explicit)} for keys and "
            f"values, {env.human_bytes(_bytes(sizes, levels[0]))} are needed; lower max_tokens, "
            "shorten the prompt or raise it"
        )
    *counts, rows = _filled(sizes, levels, budget)
    return Room(counts, chunk, rows)


def own_lengths(jobs: Sequence[Job], block_size: int) -> list[int]:
    """The most tokens of each job, but for those that it shares with its leader. One that may have
    more than that counts whole, so that the largest does."""
    lengths = []
    for job in jobs:
        prompt, leader = job.prompt_length, job.leader
        shares = leader is not None and leader.limit >= job.limit
        lengths.append((prompt % block_size if shares else prompt) + job.limit)
    return lengths


def _needs(
    pool: KVPool, lengths: Sequence[int], chunk: int, backend: Backend
) -> tuple[list[int], list[int]]:
    """Blocks of each group, and rows, for the largest job; and for all together."""
    needs = [most_blocks(length, pool.windows, pool.block_size, chunk) for length in lengths]
    by_group = list(zip(*needs, strict=True))
    rows = 0
    if pool.rows.row_bytes:  # as many as steps are recorded for
        most = backend.sequence_rows
        rows = min(next((n for n in backend.row_buckets if n >= len(lengths)), most), most)
    return [*map(max, by_group), min(rows, 1)], [*map(sum, by_group), rows]


def _filled(sizes: Sequence[int], levels: Sequence[Sequence[int]], budget: int) -> list[int]:
    """The highest of the levels that is within the budget, or the lowest, and as much of the next
    one as the rest of the budget holds: in equal parts, then one by one."""
    fits = sum(_bytes(sizes, level) <= budget for level in levels)
    if fits == len(levels):
        return list(levels[-1])
    low, high = levels[max(fits - 1, 0)], levels[max(fits, 1)]
    span = _bytes(sizes, high) - _bytes(sizes, low)
    share = max(0.0, (budget - _bytes(sizes, low)) / span) if span else 0.0
    counts = [a + int((b - a) * share) for a, b in zip(low, high, strict=True)]
    for place, (most, size) in enumerate(zip(high, sizes, strict=True)):
        rest = max(0, budget - _bytes(sizes, counts))
        if counts[place] < most:
            counts[place] += min(most - counts[place], rest // size)
    return counts


def _most(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [max(pair) for pair in zip(left, right, strict=True)]


def _free_share(backend: Backend, held: int) -> int:
    """Bytes that the pool may have where nobody said it, what it holds included."""
    free = backend.free_memory()
    return max(held, _UNKNOWN if free is None else int((held + free) * _SHARE))


def _bytes(sizes: Sequence[int], counts: Sequence[int]) -> int:
    return sum(size * count for size, count in zip(sizes, counts, strict=True))


def _rounded(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
