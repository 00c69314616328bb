"""Commands: collected, encoded into one pass, submitted; and bytes to and from the GPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, wraps
from typing import Any

import numpy as np

from boostr.backends.wgpu.runtime.buffers import Block
from boostr.backends.wgpu.runtime.provider import Provider
from boostr.backends.wgpu.runtime.replay import Replay, encoders, pieces, replay
from boostr.backends.wgpu.runtime.staging import Read, Staging, StagingRing
from boostr.errors import BackendError

# (pipeline, bind group, parameters, their bytes, x, y, z, what must live until it is encoded)
Command = tuple[Any, Any, Any, int, int, int, int, Any]

_FIRST, _BATCH = 16, 24  # commands of the first batch after the GPU was idle, and of the others
_IN_FLIGHT = 6
# bytes of an upload that are staged at once: Dawn keeps such small staging memory, and makes larger
# anew each time; and bytes that may be under way
_PIECES, _UNDER_WAY = {"wgpu": 1 << 25, "wgpudawn": 1 << 20}, 1 << 26
_READ_PIECE = 1 << 25


@cache
def _sequence() -> ThreadPoolExecutor:
    """One thread that submits runs of programs in order: it costs the host as much as recording."""
    return ThreadPoolExecutor(1, "boostr-submit")


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that runs under the queue's lock."""

    @wraps(method)
    def locked(self: Queue, *args: Any) -> Any:
        with self.lock:
            return method(self, *args)

    return locked


class Queue:
    """The order in which a device does things.

    Attributes:
        serial: counts the batches.   lock: of all that several threads may change; the backend's
            memory and caches among it. Waiting for results needs it not.
    """

    def __init__(self, provider: Provider, device: Any) -> None:
        self.provider, self._device = provider, device
        self._raw, self._safe, self._null = provider.raw, provider.safe, provider.ffi.NULL
        self._handle = device.queue._internal
        self.lock = threading.RLock()
        self.pending: list[Command] = []
        self.serial = 0
        self._limit = _FIRST
        self._encoder: Any = None  # of commands that are encoded and not submitted
        self._replayed = False  # whether all of them come from a program's store
        self._later: deque[Future] = deque()  # submissions left to a thread, in order
        self._in_flight: deque[Any] = deque()
        self._staging = StagingRing(provider, device)
        self.lost: str | None = None
        self._losses = provider.losses

    # -- commands --------------------------------------------------------------------------------
    def add(self, command: Command) -> None:
        """The caller holds the lock."""
        self.pending.append(command)
        if len(self.pending) >= self._limit:
            self.flush()

    @_alone
    def run(self, commands: Sequence[Command], described: Any = None) -> None:
        """Encode commands behind those that were collected. Few are submitted with the read of
        their results that follows, or with whatever comes next.

        described: the pass's descriptor, where it is timed.
        """
        parts = [commands] if described else pieces(commands)
        for piece in parts:
            self.flush()
            self._encoder = self._encode(piece, described or self._null)
        if len(parts) > 1:
            self.flush()

    @_alone
    def replay(self, commands: Sequence[Command]) -> Replay | None:
        """How commands are encoded over and over; None where Python does it each time."""
        return replay(self.provider, self._device, commands)

    @_alone
    def run_encoded(self, encoders: Sequence[Any]) -> None:
        """As `run`, of what a `Replay` has encoded."""
        for encoder in encoders:
            if self.pending or self._encoder is not None:
                self.flush()
            self._encoder, self._replayed = encoder, True
        if len(encoders) > 1:
            self.flush()

    @_alone
    def flush(self) -> None:
        """Start everything that was asked for."""
        self._settle()
        if self.pending:
            commands, self.pending = self.pending, []
            self._encoder = self._encode(commands, self._null)
            self._limit = _BATCH
        if self._encoder is not None:
            self._submit()

    def _encode(self, commands: Sequence[Command], described: Any) -> Any:
        """The open command encoder, or a new one, with one pass more."""
        raw, null = self._raw, self._null
        encoder = self._encoder or self.provider.encoder(self._device)
        compute = raw.wgpuCommandEncoderBeginComputePass(encoder, described)
        set_pipeline = raw.wgpuComputePassEncoderSetPipeline
        set_group = raw.wgpuComputePassEncoderSetBindGroup
        set_immediates = raw.wgpuComputePassEncoderSetImmediates
        dispatch = raw.wgpuComputePassEncoderDispatchWorkgroups
        last = None
        for pipeline, group, values, nbytes, x, y, z, _ in commands:
            if pipeline is not last:
                set_pipeline(compute, pipeline)
                last = pipeline
            set_group(compute, 0, group, 0, null)
            if nbytes:
                set_immediates(compute, 0, values, nbytes)
            dispatch(compute, x, y, z)
        self.checked(self._safe.wgpuComputePassEncoderEnd, compute)
        raw.wgpuComputePassEncoderRelease(compute)
        return encoder

    def _submit(self) -> Any:
        """Submit the open encoder; returns what a poll can wait for."""
        encoder, self._encoder, self._replayed = self._encoder, None, False
        self.serial += 1
        return self._send(self._finish(encoder))

    def _finish(self, encoder: Any) -> Any:
        """The command buffer of an encoder. It must be submitted: wgpu-native frees no other."""
        try:
            return self.checked(self._safe.wgpuCommandEncoderFinish, encoder, self._null)
        finally:
            self._raw.wgpuCommandEncoderRelease(encoder)

    def _send(self, made: Any) -> Any:
        raw, ffi = self._raw, self.provider.ffi
        holder = ffi.new("WGPUCommandBuffer[1]", [made])
        place = None
        if self.provider.name == "wgpu":
            index = self.checked(self._safe.wgpuQueueSubmitForIndex, self._handle, 1, holder)
            place = ffi.new("WGPUSubmissionIndex *", index)
            self._in_flight.append(place)
            if len(self._in_flight) > _IN_FLIGHT:
                raw.wgpuDevicePoll(self._device._internal, True, self._in_flight.popleft())
        else:
            self.checked(self._safe.wgpuQueueSubmit, self._handle, 1, holder)
        raw.wgpuCommandBufferRelease(made)
        return place

    def checked(self, fn: Callable[..., Any], *args: Any) -> Any:
        """fn(*args), the library's errors as ours."""
        self.check()
        try:
            made = fn(*args)
        except self.provider.errors as error:
            raise self.explain(str(error)) from None
        self.check()
        return made

    def check(self) -> None:
        """Raise what went wrong outside of a checked call, and whenever the device is gone."""
        if self.provider.problems:
            raise self.explain(self.provider.problems.pop())
        if self.provider.losses != self._losses:
            self._losses = self.provider.losses
            self._ask_whether_lost()
        if self.lost:
            raise BackendError(self.lost)

    def _ask_whether_lost(self) -> None:
        usage = self.provider.flags.BufferUsage
        try:
            self._device.create_buffer(size=16, usage=usage.COPY_DST)
        except self.provider.errors as error:
            self.explain(str(error))

    def explain(self, text: str) -> BackendError:
        """The error to raise for one of the library's; notices that the device is gone."""
        text = text.strip()
        self.provider.problems.clear()
        if "lost" in text.lower():
            self.lost = f"the GPU was lost ({text}); open the program again"
            return BackendError(self.lost)
        return BackendError(f"the GPU refused a command: {text}")

    @_alone
    def wait(self) -> None:
        """Until the GPU has done everything."""
        self.flush()
        self.checked(self.provider.poll, self._device, True)
        self._in_flight.clear()
        self._limit = _FIRST

    # -- bytes -----------------------------------------------------------------------------------
    @_alone
    def upload(self, block: Block, data: np.ndarray) -> None:
        """Fill a block that no other code knows yet with the bytes of a contiguous array."""
        self._settle()
        if block.serial == self.serial and (self.pending or self._encoder is not None):
            self.flush()  # a write comes before all commands that are not submitted yet
        ffi, raw = self.provider.ffi, self._raw
        flat = data.reshape(-1).view(np.uint8)
        whole, most = len(flat) // 4 * 4, _PIECES[self.provider.name]
        for start in range(0, whole, most):
            piece = flat[start : min(start + most, whole)]
            pointer = ffi.cast("void *", piece.__array_interface__["data"][0])
            self._write(block, start, pointer, len(piece))
            if start + most < whole:
                raw.wgpuQueueSubmit(self._handle, 0, self._null)  # starts the copy
                self.provider.poll(self._device, wait=(start + most) % _UNDER_WAY == 0)
        if whole < len(flat):
            tail = np.zeros(4, np.uint8)
            tail[: len(flat) - whole] = flat[whole:]
            pointer = ffi.cast("void *", tail.__array_interface__["data"][0])
            self._write(block, whole, pointer, 4)

    def _write(self, block: Block, start: int, pointer: Any, nbytes: int) -> None:
        write = self._safe.wgpuQueueWriteBuffer
        self.checked(write, self._handle, block.handle, start, pointer, nbytes)

    @_alone
    def start_read(self, block: Block, start: int, nbytes: int) -> Read:
        """Begin to copy bytes (start a multiple of 4) to the host; calling the result waits."""
        self.check()
        size = -(-nbytes // 4) * 4
        staging = self._staging.take(size)
        if self._replayed and not self.pending:
            encoder, self._encoder, self._replayed = self._encoder, None, False
            self.serial += 1
            copied = (encoder, block.gpu, start, staging, size)
            finished = encoders().submit(self._finish_read, *copied)
            staging.begun = _sequence().submit(self._submit_read, finished, staging, size)
            self._later.append(staging.begun)
            return Read(self._staging, staging, nbytes)
        self._settle()
        if self.pending:
            self.flush()
        if self._encoder is None:
            self._encoder = self.provider.encoder(self._device)
        encoder, self._encoder = self._encoder, None
        self.serial += 1
        self._read(encoder, block.gpu, start, staging, size)
        return Read(self._staging, staging, nbytes)

    def _read(self, *copied: Any) -> None:
        """Submit an encoder with a copy to the host behind its commands."""
        staging, size = copied[-2:]
        staging.begin(size, self._send(self._finish_read(*copied)))

    def _finish_read(
        self, encoder: Any, source: Any, start: int, staging: Staging, size: int
    ) -> Any:
        copy = self._raw.wgpuCommandEncoderCopyBufferToBuffer
        copy(encoder, source._internal, start, staging.gpu._internal, 0, size)
        return self._finish(encoder)

    def _submit_read(self, finished: Future, staging: Staging, size: int) -> None:
        staging.begin(size, self._send(finished.result()))

    def _settle(self) -> None:
        """Wait until what was left to the other thread is submitted."""
        while self._later:
            self._later.popleft().result()

    @_alone
    def read_ticks(self, queries: Any, ticks: Block) -> np.ndarray:
        """The bytes of a query set of two timestamps, behind the commands that were run last."""
        if self._encoder is None:
            self._encoder = self.provider.encoder(self._device)
        resolve = self._raw.wgpuCommandEncoderResolveQuerySet
        resolve(self._encoder, queries._internal, 0, 2, ticks.handle, 0)
        return self.start_read(ticks, 0, 16)()

    def read(self, block: Block, start: int, nbytes: int) -> np.ndarray:
        """Bytes on the host (start a multiple of 4)."""
        out = np.empty(nbytes, np.uint8)
        waits: deque[tuple[int, Read]] = deque()
        for at in range(0, nbytes, _READ_PIECE):
            waits.append((at, self.start_read(block, start + at, min(_READ_PIECE, nbytes - at))))
            if len(waits) == 2:
                place, wait = waits.popleft()
                out[place : place + _READ_PIECE] = wait()
        for place, wait in waits:
            out[place : place + _READ_PIECE] = wait()
        self._limit = _FIRST
        return out

    @_alone
    def drop_staging(self) -> None:
        """Give the memory of reads that are over back."""
        self._staging.clear()
