"""How large the pool of keys and values is made: what is asked for, within a budget of memory."""

from __future__ import annotations

from collections.abc import Sequence

from boostr import env
from boostr.backends.base import Backend
from boostr.engine.kv_pool import KVPool
from boostr.errors import OptionError

_SHARE = 0.25  # of the memory that is free
_UNKNOWN = 2 << 30  # bytes, where a device does not say what is free
_LEAST_POSITIONS = 2048


def wanted_blocks(
    pool: KVPool, needs: Sequence[Sequence[int]], backend: Backend, given: int | None = None
) -> list[int]:
    """Blocks of each group for jobs that need so many: room for all of them where the budget
    allows it, at least for the largest.

    given: the budget in bytes; None: that of BOOSTR_KV_MEMORY, else a share of what is free.

    Raises:
        OptionError: the largest does not fit into an explicit budget.
    """
    groups = range(len(pool.windows))
    alone = [max(need[g] for need in needs) for g in groups]
    least = -(-_LEAST_POSITIONS // pool.block_size)
    wanted = [_rounded(max(sum(need[g] for need in needs), least)) for g in groups]
    wanted = [max(w, c) for w, c in zip(wanted, pool.counts, strict=True)]
    if wanted == pool.counts:
        return wanted
    explicit = env.KV_MEMORY.bytes() if given is None else given
    budget = _free_share(backend, pool.nbytes) if explicit is None else explicit
    if _bytes(pool, wanted) <= budget:
        return wanted
    floor = [max(a, c) for a, c in zip(alone, pool.counts, strict=True)]
    lowest, highest = _bytes(pool, floor), _bytes(pool, wanted)
    if explicit is not None and lowest > explicit:
        raise OptionError(
            f"kv_memory ({env.KV_MEMORY.name}) allows {explicit / 2**30:.3g} GiB for keys and "
            f"values, {lowest / 2**30:.3g} are needed; lower max_tokens, shorten the "
            "prompt or raise it"
        )
    share = 0.0 if highest == lowest else max(0.0, (budget - lowest) / (highest - lowest))
    return [f + int((w - f) * share) for f, w in zip(floor, wanted, strict=True)]


def _free_share(backend: Backend, held: int) -> int:
    """Bytes that the pool may have where nobody said it, what it holds included."""
    free = backend.free_memory()
    return max(held, _UNKNOWN if free is None else int((held + free) * _SHARE))


def _bytes(pool: KVPool, counts: Sequence[int]) -> int:
    return sum(pool.block_bytes(group) * count for group, count in enumerate(counts))


def _rounded(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
