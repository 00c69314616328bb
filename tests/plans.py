"""Schedulers and jobs for tests, and rounds without a device."""

from boostr.engine.blocks import BlockPool
from boostr.engine.job import Job
from boostr.engine.scheduler import Scheduler


def scheduler(
    blocks=100, size=4, windows=(None,), rows=8, prefill=64, chunk=64, root=b"model", sharing=True,
    ahead=(),
):  # fmt: skip
    pools = [BlockPool(blocks, size) for _ in windows]
    return Scheduler(pools, windows, rows, prefill, root, sharing, chunk, ahead=ahead)


def submitted(plans, length, limit=10, first=0, salt=b"", leader=None):
    """A job whose prompt counts from `first` on."""
    job = Job(list(range(first, first + length)), length, limit, salt, leader=leader)
    plans.submit(job)
    return job


def run(plans, rounds=1):
    """Rounds whose tokens, 7 each, are accepted at once; the last one."""
    for _ in range(rounds):
        found = plans.plan()
        for job in [*found.decoding, *(c.job for c in found.chunks if c.final)]:
            plans.accept(job, 7)
    return found


def short_of_blocks(plans):
    """A round in which no block is free; those that were are free again after it, without keys."""
    free = [pool.take(pool.free) for pool in plans.pools]
    found = plans.plan()
    for pool, blocks in zip(plans.pools, free, strict=True):
        pool.release(blocks)
    return found


def spans(found):
    return [(chunk.job, chunk.start, chunk.stop, chunk.final) for chunk in found.chunks]
