"""The native half of the thread pool; `threads.py` is the Python half and explains it.

Each factory returns a function of the kernel signature, whose first argument is the pool's state.
"""

from boostr.backends.numpy.kernels.atomic import (
    exchange,
    fetch_add,
    invoke,
    invoke_plain,
    pause,
    read,
    read_relaxed,
    replace,
    write,
)
from boostr.backends.numpy.kernels.layout import (
    ACTIVE,
    ASLEEP,
    BARRIER,
    CALLS,
    COUNT,
    CURSOR,
    DONE,
    EPOCH,
    FUNCTION,
    GRAIN,
    ITEMS,
    NEXT,
    OPEN,
    PARAMS,
    PARKED,
    PATIENCE,
    RECORD,
    SEEN,
    TARGET,
    WOKEN,
    WORKER,
    WORKER_WORDS,
    WORKERS,
    YIELD,
)
from boostr.backends.numpy.kernels.memory import i64
from boostr.backends.numpy.kernels.simd import inline


@inline
def _wait_until(state, word, least):
    """Spins until state[word] >= least; gives the core away when that takes long."""
    spins = 0
    while read(state, word) < least:
        pause()
        spins += 1
        if spins > state[PATIENCE] and state[YIELD] != 0:
            invoke_plain(state[YIELD])


@inline
def _take(record, shares):
    """Claims the next chunk of a call: (start, stop), empty when all items are taken.

    A chunk is a share of what is left, and at least `grain` items: long ones first, because memory
    is read fastest in long runs of addresses, short ones last, so that the threads finish together.
    """
    items, grain = record[ITEMS], record[GRAIN]
    start = read_relaxed(record, NEXT)
    while start < items:
        size = max(1, (items - start) // (grain * shares)) * grain
        stop = min(start + size, items)
        found = replace(record, NEXT, start, stop)
        if found == start:
            return start, stop
        start = found
    return items, items


@inline
def _drive(state):
    """Takes chunks of all calls in order; what every thread of a run does.

    A thread leaves a call when all its items are taken. At a barrier it reports how many items it
    has done and waits for the sum of all; so a thread that joins late, or never, is not waited for.
    """
    calls, count = i64(state[CALLS]), state[COUNT]
    shares = 2 * (state[WORKERS] + 1)
    mine = 0
    index = read(state, CURSOR)
    while index < count:
        record = calls + index * RECORD
        start, stop = _take(record, shares)
        while start < stop:
            invoke(record[FUNCTION], record[PARAMS], start, stop)
            mine += stop - start
            start, stop = _take(record, shares)
        if record[BARRIER] != 0:
            if mine != 0:
                fetch_add(state, DONE, mine)
                mine = 0
            _wait_until(state, DONE, record[TARGET])
            write(state, CURSOR, index + 1)
        index += 1


def run():
    """run(state, calls, count): does all calls together with the workers that are awake."""

    def kernel(state, calls, count):
        records = i64(calls)
        total = 0
        for index in range(count):
            record = records + index * RECORD
            total += record[ITEMS]
            record[NEXT] = 0
            record[TARGET] = total
        records[(count - 1) * RECORD + BARRIER] = 1
        state[CALLS] = calls
        state[COUNT] = count
        state[DONE] = 0
        state[CURSOR] = 0
        epoch = state[EPOCH] + 1
        exchange(state, OPEN, epoch)
        exchange(state, EPOCH, epoch)
        _drive(state)
        # Close, then wait: a worker counts itself in before it looks whether the run is open, so
        # after this nobody touches the records, and the caller may change or free them.
        exchange(state, OPEN, 0)
        spins = 0
        while read(state, ACTIVE) != 0:
            pause()
            spins += 1
            if spins > state[PATIENCE] and state[YIELD] != 0:
                invoke_plain(state[YIELD])

    return kernel


def run_alone():
    """run_alone(unused, calls, count): all calls on this thread."""

    def kernel(state, calls, count):
        records = i64(calls)
        for index in range(count):
            record = records + index * RECORD
            if record[ITEMS] > 0:
                invoke(record[FUNCTION], record[PARAMS], 0, record[ITEMS])

    return kernel


def work():
    """work(state, index, spins): joins every run; returns to sleep after `spins` idle turns, or at
    the end.

    Before it returns it has set ASLEEP. Whoever takes that flag back (this worker, because a run
    began just then, or the caller, who then also releases the worker's lock) decides: no wake-up is
    lost.
    """

    def kernel(state, index, spins):
        own = state + (WORKER + index * WORKER_WORDS)
        idle = 0
        while True:
            epoch = read(state, EPOCH)
            if epoch == -1:
                return
            if epoch != own[SEEN]:
                own[SEEN] = epoch
                fetch_add(state, ACTIVE, 1)
                if read(state, OPEN) != 0:
                    _drive(state)
                fetch_add(state, ACTIVE, -1)
                idle = 0
                continue
            pause()
            idle += 1
            if idle >= spins:
                exchange(own, ASLEEP, 1)
                fetch_add(state, PARKED, 1)
                if read(state, EPOCH) == own[SEEN] or exchange(own, ASLEEP, 0) == 0:
                    return
                fetch_add(state, PARKED, -1)
                idle = 0

    return kernel


def wake():
    """wake(state, 0, 0): takes back ASLEEP of each sleeping worker and sets its WOKEN."""

    def kernel(state, unused, also_unused):
        for index in range(state[WORKERS]):
            own = state + (WORKER + index * WORKER_WORDS)
            own[WOKEN] = exchange(own, ASLEEP, 0)
            fetch_add(state, PARKED, -own[WOKEN])

    return kernel


def spin():
    """spin(state, 0, n): n pauses, to learn how long one takes."""

    def kernel(state, start, stop):
        for _ in range(start, stop):
            pause()

    return kernel
