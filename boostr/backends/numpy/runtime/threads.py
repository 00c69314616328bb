"""The thread pool that runs native kernels: the caller and N - 1 workers.

A list of calls is an int64 array of records [function, params, items, grain, barrier, -, -, -]
(`kernels/runtime/layout.py`). One native call runs all of it: the items of a call are shared out
evenly, each thread takes its share in order in chunks [start, stop) of `grain` items, then helps
with the others' shares, then goes on to the next call. After a call whose barrier word is not 0 all
threads wait until every item so far is done; calls between two barriers must not depend on each
other.

Workers are Python daemon threads that sit in a native function without the GIL. When idle they spin
for a short while (a decode step follows another within microseconds), then sleep on a Python lock.
Nothing waits for a worker that sleeps: completion counts items, not threads, so a late worker
costs speed and never a deadlock.
"""

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from boostr import env
from boostr.backends.base import KernelClock
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.runtime import jit

# Long enough for the Python between two steps, short enough to leave the cores to numpy's BLAS.
SPIN_SECONDS = 200e-6
STACK_BYTES = 2 << 20  # GEMM keeps its panels on the stack


class Calls:
    """Records of kernel calls, ready to run. Keeps what they point to alive."""

    def __init__(self):
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._kept: list[np.ndarray] = []
        self.records = np.zeros((0, layout.RECORD), np.int64)

    def add(self, address: int, params: np.ndarray, items: int, grain: int, barrier=True) -> None:
        """One call: `items` units of work, handed out in chunks of at most `grain`."""
        self._kept.append(params)
        row = (address, params.ctypes.data, items, max(1, grain), int(barrier))
        self._rows.append(row)

    def freeze(self) -> "Calls":
        """Builds the array of records; call it after the last `add`."""
        self.records = aligned(len(self._rows) * layout.RECORD).reshape(-1, layout.RECORD)
        self.records[:, :5] = self._rows
        return self


def aligned(words: int) -> np.ndarray:
    """Zeroed int64 words that begin at a 128-byte border."""
    room = np.zeros(words + 16, np.int64)
    skip = (-room.ctypes.data % 128) // 8
    return room[skip : skip + words]


class _OneCall(threading.local):
    """A record that each Python thread fills anew for `run_one`."""

    def __init__(self):
        self.record = aligned(layout.RECORD)
        self.address = self.record.ctypes.data


_one = _OneCall()


def run_one(function: int, params: int, items: int, grain: int) -> None:
    """Runs one call: the address of a kernel, that of its parameters, its work."""
    _one.record[:5] = (function, params, items, max(1, grain), 1)
    pool().run_at(_one.address, 1)


def _yield_address() -> int:
    """The system's `int yield(void)`; 0 if there is none."""
    try:
        if os.name == "nt":
            function = ctypes.windll.kernel32.SwitchToThread  # type: ignore[attr-defined]
        else:
            function = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Pool:
    """`threads` threads, the caller among them."""

    def __init__(self, threads: int):
        if threads < 1:
            raise ValueError(f"a pool needs at least 1 thread, got {threads}")
        self.threads = threads
        self._lock = threading.Lock()
        self._clock: KernelClock | None = None
        self._workers: list[threading.Thread] = []
        if threads == 1:
            self._run_alone = jit.FUNCTION(jit.kernel("pool.run_alone"))
            return
        workers = threads - 1
        self._state = aligned(layout.WORKER + workers * layout.WORKER_WORDS)
        self._words = memoryview(self._state.data)  # reads a word three times faster than numpy
        self._address = self._state.ctypes.data
        self._run, self._wake, self._work, spin = (
            jit.FUNCTION(jit.kernel(f"pool.{name}")) for name in ("run", "wake", "work", "spin")
        )
        self._state[layout.YIELD] = _yield_address()
        self._state[layout.WORKERS] = workers
        self._state[layout.PATIENCE] = 5000 if threads <= env.cores() else 50
        self._make_room(256)
        self._spins = self._measure(spin)
        self._beds = [threading.Lock() for _ in range(workers)]
        for bed in self._beds:
            bed.acquire()
        self._start()

    def _make_room(self, count: int) -> None:
        """Words for what has been taken of each thread's share of `count` calls."""
        self._taken = aligned(2 * count * self.threads)
        self._state[layout.TAKEN] = self._taken.ctypes.data

    def _measure(self, spin) -> int:
        """How many pauses SPIN_SECONDS are."""
        best = 1.0
        for _ in range(3):
            started = time.perf_counter()
            spin(self._address, 0, 1000)
            best = min(best, (time.perf_counter() - started) / 1000)
        return max(100, int(SPIN_SECONDS / max(best, 1e-9)))

    def _start(self) -> None:
        previous = threading.stack_size(STACK_BYTES)
        try:
            for index in range(self.threads - 1):
                worker = threading.Thread(
                    target=self._live, args=(index,), name=f"boostr-{index}", daemon=True
                )
                self._workers.append(worker)
                worker.start()
        finally:
            threading.stack_size(previous)

    def _live(self, index: int) -> None:
        """A worker: native until it is tired, then asleep until woken."""
        bed = self._beds[index]
        while True:
            self._work(self._address, index, self._spins)
            if self._words[layout.EPOCH] == -1:
                return
            bed.acquire()

    def _rouse(self) -> None:
        """Wakes the sleeping workers. The caller holds the lock."""
        self._wake(self._address, 0, 0)
        for index, bed in enumerate(self._beds):
            if self._words[layout.WORKER + index * layout.WORKER_WORDS + layout.WOKEN]:
                bed.release()

    def run(self, records: np.ndarray) -> None:
        """Runs call records int64 [n, RECORD]. Threads of Python that come together take turns."""
        count = len(records)
        if count == 0:
            return
        self.run_at(records.ctypes.data, count)

    def run_at(self, address: int, count: int) -> None:
        """`run` for records at an address, the cheapest way in."""
        with self._lock:
            if self._clock is None:
                self._run_calls(address, count)
                return
            started = time.perf_counter()
            self._run_calls(address, count)
            self._clock.seconds += time.perf_counter() - started

    def _run_calls(self, address: int, count: int) -> None:
        """The caller holds the lock."""
        if self.threads == 1:
            self._run_alone(None, address, count)
            return
        if self._words[layout.PARKED]:
            self._rouse()
        if count * self.threads > len(self._taken):
            self._make_room(count)
        self._run(self._address, address, count)

    @contextmanager
    def timed(self) -> Iterator[KernelClock]:
        """Inside, the seconds of all runs are added up."""
        self._clock = clock = KernelClock()
        try:
            yield clock
        finally:
            self._clock = None

    def close(self) -> None:
        """Sends the workers home. The pool cannot be used afterwards."""
        if not self._workers:
            return
        with self._lock:
            self._state[layout.EPOCH] = -1
            self._rouse()
        for worker in self._workers:
            worker.join(timeout=1.0)
        self._workers = []


_pool: Pool | None = None
_guard = threading.Lock()


def pool() -> Pool:
    """The process's pool, with `env.num_threads()` threads, made on first use."""
    global _pool
    if _pool is None:
        with _guard:
            if _pool is None:
                _pool = Pool(env.num_threads())
    return _pool


def _forget() -> None:
    """After a fork the child has the memory but none of the workers: it makes its own pool."""
    global _pool, _guard
    _pool, _guard = None, threading.Lock()


def _leave() -> None:
    if _pool is not None:
        _pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_leave)
