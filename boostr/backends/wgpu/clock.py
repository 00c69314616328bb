"""How long commands take on the GPU, by its own clock where it has one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from boostr.backends.wgpu.buffers import Block
from boostr.backends.wgpu.queue import Command, Queue


class Clock:
    """Times batches of commands.

    Args:
        period: nanoseconds of a tick of the GPU's clock; 0 where it has none that can be read.
    """

    def __init__(self, queue: Queue, device: Any, period: float) -> None:
        self._queue, self._device, self._period = queue, device, period
        self._set: Any = None

    def seconds(self, commands: Sequence[Command]) -> float:
        """Run commands alone, and say how long they took."""
        self._queue.wait()
        if not self._period:
            started = time.perf_counter()
            self._queue.run(commands)
            self._queue.wait()
            return time.perf_counter() - started
        if self._set is None:
            self._open()
        self._queue.run(commands, self._writes)
        ticks = self._queue.read_ticks(self._set, self._ticks).view(np.uint64)
        return float(ticks[1] - ticks[0]) * self._period * 1e-9

    def _open(self) -> None:
        provider = self._queue.provider
        usage, ffi = provider.flags.BufferUsage, provider.ffi
        self._set = self._device.create_query_set(type="timestamp", count=2)
        gpu = self._device.create_buffer(size=16, usage=usage.QUERY_RESOLVE | usage.COPY_SRC)
        self._ticks = Block(gpu, 16, None)
        self._marks = ffi.new("WGPUPassTimestampWrites *")
        self._marks.querySet = self._set._internal
        self._marks.beginningOfPassWriteIndex, self._marks.endOfPassWriteIndex = 0, 1
        self._writes = ffi.new("WGPUComputePassDescriptor *")
        self._writes.timestampWrites = self._marks


def period(provider: Any, device: Any) -> float:
    """Nanoseconds of a tick; 0 without a clock."""
    if "timestamp-query" not in device.features:
        return 0.0
    if provider.name != "wgpu":
        return 1.0
    return float(provider.raw.wgpuQueueGetTimestampPeriod(device.queue._internal))
