"""How long commands take on the GPU, by its own clock where it has one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from boostr.backends.wgpu.runtime.buffers import Block
from boostr.backends.wgpu.runtime.provider import Provider
from boostr.backends.wgpu.runtime.queue import Command, Queue


class Clock:
    """Times batches of commands.

    Args:
        period: nanoseconds of a tick of the GPU's clock; 0 where it has none that can be read.
    """

    def __init__(self, queue: Queue, device: Any, period: float) -> None:
        self._queue, self._device, self._period = queue, device, period
        self._marks: list[_Mark] = []

    def seconds(self, commands: Sequence[Command]) -> float:
        """Run commands alone, and say how long they took."""
        return self.busy(commands, 1)[0]

    def busy(self, commands: Sequence[Command], repeats: int, warm_runs: int = 0) -> list[float]:
        """The seconds of some runs, one after the other without a pause, behind others that bring
        the GPU's clocks up."""
        self._queue.wait()
        if not self._period:
            return [self._by_the_host(commands) for _ in range(warm_runs + repeats)][warm_runs:]
        for _ in range(warm_runs):
            self._queue.run(commands)
        marks = [self._mark(i) for i in range(repeats)]
        for mark in marks:
            self._queue.run(commands, mark.described)
        ticks = [self._queue.read_ticks(mark.queries, mark.block) for mark in marks]
        pairs = [t.view(np.uint64) for t in ticks]
        return [float(stop - start) * self._period * 1e-9 for start, stop in pairs]

    def _by_the_host(self, commands: Sequence[Command]) -> float:
        started = time.perf_counter()
        self._queue.run(commands)
        self._queue.wait()
        return time.perf_counter() - started

    def _mark(self, index: int) -> _Mark:
        while len(self._marks) <= index:
            self._marks.append(_Mark(self._queue.provider, self._device))
        return self._marks[index]


class _Mark:
    """Two timestamps around a pass."""

    def __init__(self, provider: Provider, device: Any) -> None:
        usage, ffi = provider.flags.BufferUsage, provider.ffi
        self.queries = device.create_query_set(type="timestamp", count=2)
        gpu = device.create_buffer(size=16, usage=usage.QUERY_RESOLVE | usage.COPY_SRC)
        self.block = Block(gpu, 16, None)
        self._writes = ffi.new("WGPUPassTimestampWrites *")
        self._writes.querySet = self.queries._internal
        self._writes.beginningOfPassWriteIndex, self._writes.endOfPassWriteIndex = 0, 1
        self.described = ffi.new("WGPUComputePassDescriptor *")
        self.described.timestampWrites = self._writes


def period(provider: Any, device: Any) -> float:
    """Nanoseconds of a tick; 0 without a clock."""
    if "timestamp-query" not in device.features:
        return 0.0
    if provider.name != "wgpu":
        return 1.0
    return float(provider.raw.wgpuQueueGetTimestampPeriod(device.queue._internal))
