"""Programs as flat lists of commands, which are encoded again for every run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.buffers import Arena, Buffer
from boostr.backends.wgpu.runtime.clock import Clock
from boostr.backends.wgpu.runtime.queue import Command, Queue
from boostr.backends.wgpu.runtime.replay import Replay
from boostr.program import Program

_OFTEN = 2  # runs after which a program is worth being prepared


class Recorder:
    """The capture under way: its commands, which are run meanwhile, its memory, and the buffers of
    others that it uses."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        arena.begin()
        self._commands: list[Command] = []
        self._names: list[str] = []
        self._pinned: dict[int, Buffer] = {}

    def add(
        self, name: str, command: Command, reads: Sequence[GpuArray], writes: Sequence[GpuArray]
    ) -> None:
        self._commands.append(command)
        self._names.append(name)
        for array in (*reads, *writes):
            if not self.arena.owns(array.buffer):
                self._pinned[array.buffer.block.uid] = array.buffer

    def program(
        self, clock: Clock, queue: Queue, fn: Callable[[], Any], outputs: Any
    ) -> WgpuProgram:
        """What was recorded."""
        kept = (fn, outputs, list(self._pinned.values()))
        return WgpuProgram(clock, queue, self._commands, self._names, self.arena, kept)


class WgpuProgram(Program):
    """Commands, the memory that only they use, and what must live as long as they do."""

    def __init__(
        self,
        clock: Clock,
        queue: Queue,
        commands: list[Command],
        names: list[str],
        arena: Arena,
        kept: Any,
    ) -> None:
        self._clock, self._queue, self._commands, self._names = clock, queue, commands, names
        self._arena, self._kept = arena, kept
        self._runs = 1  # the capture
        self._replay: Replay | None = None

    def run(self) -> Any:
        with self._queue.lock:
            self._runs += 1
            if self._runs == _OFTEN:
                self._replay = self._queue.replay(self._commands)
            encoded = None if self._replay is None else self._replay.take()
            if encoded is not None:
                self._queue.run_encoded(encoded)
            elif self._commands:
                self._queue.run(self._commands)
        return self.outputs

    def seconds(self) -> float:
        """Run alone, and say how long it took on the GPU."""
        with self._queue.lock:
            return self._clock.seconds(self._commands)

    def busy_seconds(self, repeats: int, warm_runs: int = 0) -> list[float]:
        """Of some runs without a pause between them, behind others that are not timed."""
        with self._queue.lock:
            return self._clock.busy(self._commands, repeats, warm_runs)

    def __len__(self) -> int:
        return len(self._commands)

    def calls(self) -> list[str]:
        return list(self._names)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():
            return  # all of it goes with the process
        if self._replay is not None:
            self._replay.close()
