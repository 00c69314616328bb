"""Buffers that the host can see, through which results come back."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future
from typing import Any

import numpy as np

from boostr.backends.wgpu.runtime.provider import Provider
from boostr.errors import BackendError

_LEAST = 4096  # bytes
_MAP_READ = 1
_numbers = itertools.count(1)
# reads that the library has not answered yet: what it calls back to must not die before
_waiting: dict[int, Staging] = {}


class Staging:
    """A mappable buffer, for one read at a time."""

    def __init__(self, provider: Provider, device: Any, size: int) -> None:
        usage = provider.flags.BufferUsage
        self.gpu = device.create_buffer(size=size, usage=usage.MAP_READ | usage.COPY_DST)
        self.size = size
        self._provider, self._device = provider, device
        self._status: int | None = None
        self._bytes, self._place = 0, None
        self.begun: Future | None = None  # where another thread begins the read
        self._info: Any = None

    def begin(self, nbytes: int, submission: Any) -> None:
        """Ask for the bytes that were copied here by a submission."""
        provider = self._provider
        if self._info is None:
            self._info = provider.ffi.new("WGPUBufferMapCallbackInfo *")
            self._info.mode = provider.raw.WGPUCallbackMode_AllowProcessEvents
            self._info.callback = _callback(provider)
        self._bytes, self._status = nbytes, None
        number = next(_numbers)
        _waiting[number] = self
        self._info.userdata1 = provider.ffi.cast("void *", number)
        map_buffer = provider.safe.wgpuBufferMapAsync
        future = map_buffer(self.gpu._internal, _MAP_READ, 0, nbytes, self._info[0])
        self._place = provider.place(submission, future)

    def answered(self, status: int) -> None:
        self._status = status

    def finish(self) -> np.ndarray:
        """The bytes, once the GPU is done with the submission that copied them."""
        begun, self.begun = self.begun, None
        if begun is not None:
            begun.result()
        raw, ffi = self._provider.raw, self._provider.ffi
        while self._status is None:
            self._provider.wait_for(self._device, self._place)
        if self._status != raw.WGPUMapAsyncStatus_Success:
            raise BackendError(f"reading from the GPU failed (status {self._status})")
        source = raw.wgpuBufferGetConstMappedRange(self.gpu._internal, 0, self._bytes)
        values = np.empty(self._bytes, np.uint8)
        ffi.memmove(ffi.from_buffer(values), source, self._bytes)
        raw.wgpuBufferUnmap(self.gpu._internal)
        return values


def _callback(provider: Provider) -> Any:
    """The C function that the library calls when a buffer is mapped; made once, never freed."""
    if provider.mapped is None:
        signature = "void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)"

        def mapped(status: int, message: Any, number: Any, nothing: Any) -> None:
            _waiting.pop(int(provider.ffi.cast("intptr_t", number))).answered(status)

        provider.mapped = provider.ffi.callback(signature, mapped)
    return provider.mapped


class StagingRing:
    """Staging buffers by size, those of reads that nobody waited for among them."""

    def __init__(self, provider: Provider, device: Any) -> None:
        self._provider, self._device = provider, device
        self._free: dict[int, list[Staging]] = {}
        self._made: list[Staging] = []  # none may be finalised with a read that is garbage
        self.abandoned: deque[Staging] = deque()

    def take(self, nbytes: int) -> Staging:
        while len(self.abandoned) > 4:  # the oldest is surely done
            staging = self.abandoned.popleft()
            staging.finish()
            self.give(staging)
        size = max(_LEAST, 1 << (nbytes - 1).bit_length())
        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        self._made.append(Staging(self._provider, self._device, size))
        return self._made[-1]

    def give(self, staging: Staging) -> None:
        self._free.setdefault(staging.size, []).append(staging)

    def clear(self) -> None:
        """Give everything back that is not in use."""
        while self.abandoned:
            staging = self.abandoned.popleft()
            staging.finish()
            self.give(staging)
        idle = {id(staging) for free in self._free.values() for staging in free}
        self._made = [staging for staging in self._made if id(staging) not in idle]
        self._free.clear()


class Read:
    """A read under way; called once, it waits and gives the bytes."""

    def __init__(self, ring: StagingRing, staging: Staging, nbytes: int) -> None:
        self._ring, self._nbytes = ring, nbytes
        self._staging: Staging | None = staging

    def __call__(self) -> np.ndarray:
        staging, self._staging = self._staging, None
        if staging is None:
            raise BackendError("a read from the GPU can be waited for once")
        values = staging.finish()[: self._nbytes]
        self._ring.give(staging)
        return values

    def __del__(self) -> None:
        if self._staging is not None:
            self._ring.abandoned.append(self._staging)
