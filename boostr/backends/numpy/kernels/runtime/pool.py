"""The native half of the thread pool; `threads.py` is the Python half and explains it.

Each factory returns a function of the kernel signature, whose first argument is the pool's state.
"""

from boostr.backends.numpy.kernels.runtime.atomic import (
    exchange,
    fetch_add,
    invoke,
    invoke_plain,
    pause,
    read,
    read_relaxed,
    write,
)
from boostr.backends.numpy.kernels.runtime.layout import (
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
    OPEN,
    PARAMS,
    PARKED,
    PATIENCE,
    RECORD,
    SEEN,
    SHARE,
    TAKEN,
    TARGET,
    WOKEN,
    WORKER,
    WORKER_WORDS,
    WORKERS,
    YIELD,
)
from boostr.backends.numpy.kernels.runtime.memory import i64
from boostr.backends.numpy.kernels.runtime.simd import inline


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
def _take(cursors, thread, threads, items, share, grain):
    """Claims the next chunk of a call: (start, stop), both 0 when all items are taken.

    Each thread has its own share, a run of items that it takes in order: memory is read fastest in
    long runs of addresses, and prefetching past a chunk's end is then never in vain. A thread whose
    share is done goes on with what is left of the next one's, so that all finish together.
    """
    for turn in range(threads):
        owner = thread + turn
        if owner >= threads:
            owner -= threads
        first = owner * share
        size = min(share, items - first)
        if read_relaxed(cursors, owner) < size:
            at = fetch_add(cursors, owner, grain)
            if at < size:
                return first + at, first + min(at + grain, size)
    return 0, 0


@inline
def _drive(state, thread):
    """Takes chunks of all calls in order; what every thread of a run does.

    A thread leaves a call when all its items are taken. At a barrier it reports how many items it
    has done and waits for the sum of all; so a thread that joins late, or never, is not waited for.
    """
    calls, count, threads = i64(state[CALLS]), state[COUNT], state[WORKERS] + 1
    mine = 0
    index = read(state, CURSOR)
    while index < count:
        record = calls + index * RECORD
        cursors = i64(state[TAKEN]) + index * threads
        items, share, grain = record[ITEMS], record[SHARE], record[GRAIN]
        start, stop = _take(cursors, thread, threads, items, share, grain)
        while start < stop:
            invoke(record[FUNCTION], record[PARAMS], start, stop)
            mine += stop - start
            start, stop = _take(cursors, thread, threads, items, share, grain)
        if record[BARRIER] != 0:
            if mine != 0:
                fetch_add(state, DONE, mine)
                mine = 0
            _wait_until(state, DONE, record[TARGET])
            write(state, CURSOR, index + 1)
        index += 1


def run():
    """run(state, calls, count): does all calls together with the workers that are awake.

    TAKEN must have room for count * threads words.
    """

    def kernel(state, calls, count):
        records, taken, threads = i64(calls), i64(state[TAKEN]), state[WORKERS] + 1
        total = 0
        for index in range(count):
            record = records + index * RECORD
            grain = record[GRAIN]
            total += record[ITEMS]
            record[SHARE] = (record[ITEMS] + threads * grain - 1) // (threads * grain) * grain
            record[TARGET] = total
        for index in range(count * threads):
            taken[index] = 0
        records[(count - 1) * RECORD + BARRIER] = 1
        state[CALLS] = calls
        state[COUNT] = count
        state[DONE] = 0
        state[CURSOR] = 0
        epoch = state[EPOCH] + 1
        exchange(state, OPEN, epoch)
        exchange(state, EPOCH, epoch)
        _drive(state, 0)
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
                    _drive(state, index + 1)
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
