"""What a capture on the CPU records, and its replay: runs of kernel calls, one native call for
each.

Within a run of kernels a barrier stands only where a call touches memory that an earlier call
since the last barrier wrote, or writes what one read. Intermediate results come from an arena that
hands memory on when the tensor that held it dies, in the order of the capture, which is also the
order of every replay.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boostr.backends.numpy.runtime import blocks, threads
from boostr.errors import BackendError
from boostr.program import SHARED, Program

Range = tuple[int, int]


@dataclass
class PythonCall:
    """A call of a numpy function whose result is copied to where it lay during the capture."""

    fn: Callable[..., Any]
    args: tuple
    result: np.ndarray | None

    def run(self) -> None:
        value = self.fn(*self.args)
        if self.result is not None:
            np.copyto(self.result, value)


@dataclass
class NativeCall:
    """A call of a compiled kernel, and the memory that it reads and writes."""

    name: str
    address: int
    params: np.ndarray
    items: int
    grain: int
    reads: list[Range]
    writes: list[Range]


class _Block(blocks.Block):
    """One allocation of the arena; another program may have its memory by the time it dies.

    Attributes:
        arena: whose it is.   program: the number of the arena's program that it was made for.
    """

    __slots__ = ("arena", "program")

    def __init__(self, raw: np.ndarray, free: list[np.ndarray], nbytes: int, arena: Arena) -> None:
        super().__init__(raw, free, nbytes)
        self.arena, self.program = arena, arena.program


class Arena:
    """Memory for the intermediate results of programs that never run at the same time, in blocks of
    power-of-two sizes, all of which each of them may use."""

    def __init__(self) -> None:
        self.program = 0  # how many were begun
        self._blocks: list[np.ndarray] = []
        self._most: dict[int, int] = {}  # address of a block -> the most bytes of it that were used
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)

    def begin(self) -> None:
        """Another program is recorded."""
        self.program += 1
        self._free = defaultdict(list)  # what earlier ones still hold returns elsewhere
        for raw in self._blocks:
            self._free[raw.nbytes].append(raw)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(raw.nbytes for raw in self._blocks)

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that anything has been made in: what of them lies in memory."""
        return sum(self._most.values())

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        nbytes = math.prod(shape) * dtype.itemsize
        size = max(256, blocks.size_of(nbytes))
        free = self._free[size]
        if free:
            raw = free.pop()
        else:
            raw = threads.aligned(size // 8).view(np.uint8)
            self._blocks.append(raw)
        at = raw.ctypes.data
        self._most[at] = max(self._most.get(at, 0), nbytes)
        return np.asarray(_Block(raw, free, nbytes, self)).view(dtype).reshape(shape)

    def owns(self, x: np.ndarray) -> bool:
        """Whether x was made by the program that is recorded.

        Raises:
            BackendError: by an earlier one of the arena.
        """
        while isinstance(x.base, np.ndarray):
            x = x.base
        if not isinstance(x.base, _Block) or x.base.arena is not self:
            return False
        if x.base.program != self.program:
            raise BackendError(SHARED)
        return True


class Recorder:
    """Collects calls while a capture runs."""

    def __init__(self, arena: Arena) -> None:
        self.calls: list[PythonCall | NativeCall] = []
        self.arena = arena
        arena.begin()
        self.kept: list[Any] = []  # memory that is not the arena's: weights, caches, inputs
        self._derived: dict[tuple[str, Range], np.ndarray] = {}

    def derived(self, name: str, x: np.ndarray) -> np.ndarray | None:
        """What `remember` was given for x, if nothing has written to x since."""
        return self._derived.get((name, byte_bounds(x)))

    def remember(self, name: str, x: np.ndarray, value: np.ndarray) -> None:
        """Note that `value` was computed from x by kernel `name`, so that it need not be again."""
        self._derived[name, byte_bounds(x)] = value

    def python_call(
        self, fn: Callable[..., Any], args: tuple, result: np.ndarray | None
    ) -> np.ndarray | None:
        """The result where it lies from now on."""
        self._derived.clear()  # it may write anywhere
        for x in args:
            if isinstance(x, np.ndarray):
                self.arena.owns(x)
        if result is not None and result.base is None:
            made, result = result, self.arena.empty(result.shape, result.dtype)
            np.copyto(result, made)
        self.calls.append(PythonCall(fn, args, result))
        return result

    def native_call(
        self,
        call: tuple[str, int, np.ndarray, int, int],
        reads: Sequence[np.ndarray],
        writes: Sequence[np.ndarray],
    ) -> None:
        self.kept += [x for x in (*reads, *writes) if not self.arena.owns(x)]
        read, written = ([byte_bounds(x) for x in group if x.size] for group in (reads, writes))
        self._derived = {
            key: value for key, value in self._derived.items() if not _overlap([key[1]], written)
        }
        self.calls.append(NativeCall(*call, read, written))


class NumpyProgram(Program):
    """Kernel calls in native lists, numpy calls between them."""

    def __init__(self, recorder: Recorder) -> None:
        self._kept: list[Any] = [recorder.arena, recorder.kept]
        self.memory = recorder.arena.used_bytes
        self._calls = recorder.calls
        self._steps: list[Callable[[], None]] = []
        pending: list[NativeCall] = []
        for call in recorder.calls:
            if isinstance(call, NativeCall):
                pending.append(call)
            else:
                self._flush(pending)
                self._steps.append(call.run)
        self._flush(pending)

    def _flush(self, pending: list[NativeCall]) -> None:
        if not pending:
            return
        calls = threads.Calls()
        for call, barrier in zip(pending, barriers(pending), strict=True):
            calls.add(call.address, call.params, call.items, call.grain, barrier)
        records = calls.freeze().records
        self._kept.append(calls)
        self._steps.append(
            functools.partial(threads.pool().run_at, records.ctypes.data, len(records))
        )
        pending.clear()

    def run(self) -> Any:
        for step in self._steps:
            step()
        return self.outputs

    def __len__(self) -> int:
        return len(self._calls)

    def calls(self) -> list[str]:
        return [
            call.name if isinstance(call, NativeCall) else f"numpy {call.fn.__name__}"
            for call in self._calls
        ]


def barriers(calls: Sequence[NativeCall]) -> list[bool]:
    """For each call whether all threads must wait after it before the next may start."""
    result = []
    read: list[Range] = []
    written: list[Range] = []
    for call, following in zip(calls, [*calls[1:], None], strict=True):
        read += call.reads
        written += call.writes
        wait = following is None or (
            _overlap(written, following.reads + following.writes)
            or _overlap(read, following.writes)
        )
        result.append(wait)
        if wait:
            read, written = [], []
    return result


def _overlap(left: Sequence[Range], right: Sequence[Range]) -> bool:
    return any(a < d and c < b for a, b in left for c, d in right)


def byte_bounds(x: np.ndarray) -> Range:
    """First address and one past the last of the memory that x covers."""
    if x.flags.c_contiguous:
        start = x.__array_interface__["data"][0]
        return start, start + x.nbytes
    return np.lib.array_utils.byte_bounds(x)
