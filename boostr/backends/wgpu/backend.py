"""WgpuBackend: primitives and kernels as WGSL, programs as lists of commands."""

from __future__ import annotations

import gc
import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from boostr import dtypes, env
from boostr.backends.base import Kernel, Shape
from boostr.backends.wgpu.kernel_table import find_kernel
from boostr.backends.wgpu.primitives.primitives import Primitives
from boostr.backends.wgpu.runtime import wgsl
from boostr.backends.wgpu.runtime.array import GpuArray, contiguous_strides
from boostr.backends.wgpu.runtime.buffers import Arena, Buffer, Pool
from boostr.backends.wgpu.runtime.clock import Clock, period
from boostr.backends.wgpu.runtime.device import open_device
from boostr.backends.wgpu.runtime.groups import Groups
from boostr.backends.wgpu.runtime.kernels import Pipelines, Variant
from boostr.backends.wgpu.runtime.program import Recorder
from boostr.backends.wgpu.runtime.provider import Provider
from boostr.backends.wgpu.runtime.queue import Command, Queue
from boostr.errors import BackendError, DTypeError, OutOfMemoryError
from boostr.program import Program

VARIANTS = [Variant("device", {"COPY": copy}) for copy in (False, True)]
_PROBE_BYTES = 1 << 28
_WARM_SECONDS = 0.4  # until a GPU that was idle has its clocks up
_POOLED = 1 << 20  # bytes; larger uploads (weights) lie in blocks of their own size


class _Capture(threading.local):
    """What this thread records; None outside of a capture."""

    recorder: Recorder | None = None


class WgpuBackend(Primitives):
    """Tensors are `GpuArray`s in buffers of one adapter. Threads may use it together: what changes
    the pool, the caches of pipelines and bind groups or the queue holds `queue.lock`.

    Attributes:
        caps: what the GPU can do.   provider: the library.
    """

    name = "wgpu"
    prefill_chunk, prefill_beside = 512, 256
    records_prefill = True
    kv_block, sequence_rows, row_buckets = 64, 64, (1, 4, 16, 32, 64)
    run_ahead = 3
    joins_weights = True

    def __init__(self, provider: Provider, adapter: Any, selector: str) -> None:
        self.provider = provider
        self._device_name = f"wgpu:{selector}" if selector else "wgpu"
        self.poison = env.POISON.text() == "1"
        self._debug = env.DEBUG.integer()
        checked = self.poison or self._debug > 0
        self._gpu, self.caps = open_device(provider, adapter, checked)
        self.queue = Queue(provider, self._gpu)
        self.pipelines = Pipelines(provider, self._gpu, self.caps, self.poison)
        self.groups = Groups(provider, self._gpu, self.caps)
        self.pool = Pool(self._make, lambda: self.queue.serial, self.groups.drop, self.queue.wait)
        self.clock = Clock(self.queue, self._gpu, period(provider, self._gpu))
        self._capture = _Capture()
        self._found: dict[str, Kernel | str] = {}
        if self._debug >= 1:
            print(f"boostr: {self.device}: {self.caps}", file=sys.stderr)

    @property
    def recorder(self) -> Recorder | None:
        """Of the capture that this thread is in; others run beside it unrecorded."""
        return self._capture.recorder

    @property
    def device(self) -> str:
        return self._device_name

    # -- memory ----------------------------------------------------------------------------------
    def _make(self, nbytes: int) -> Any:
        usage = self.provider.flags.BufferUsage
        if nbytes > self.caps.buffer_bytes:
            raise OutOfMemoryError(
                f"one buffer holds at most {self.caps.buffer_bytes / 2**30:.2f} GiB there"
            )
        try:
            return self._gpu.create_buffer(
                size=nbytes, usage=usage.STORAGE | usage.COPY_SRC | usage.COPY_DST
            )
        except self.provider.errors as error:
            text = str(error)
        if "lost" in text.lower():
            raise self.queue.explain(text)
        raise OutOfMemoryError(text)

    def empty(self, shape: Shape, dtype: Any = np.float32) -> GpuArray:
        """Uninitialised memory; inside a capture it belongs to the program."""
        kind = np.dtype(dtype)
        if kind not in wgsl.NAMES:
            raise DTypeError(f"{self.device} holds no {kind}")
        recorder = self._capture.recorder
        home = recorder.arena if recorder is not None else self.pool
        array = self._array(tuple(shape), kind, home.take)
        if self.poison:
            self._fill(array.buffer, 0x7FC00000)
        return array

    def _array(self, shape: Shape, dtype: np.dtype, take: Callable[[int], Buffer]) -> GpuArray:
        nbytes = math.prod(shape) * dtype.itemsize
        try:
            with self.queue.lock:
                buffer = take(nbytes)
            return GpuArray(buffer, shape, dtype, contiguous_strides(shape))
        except OutOfMemoryError as error:
            text = str(error)
        raise OutOfMemoryError(
            f"{self.device} is out of memory: {nbytes / 2**20:.1f} MiB for an array of shape "
            f"{list(shape)} ({dtype}) beside {self.pool.allocated / 2**30:.2f} GiB in use "
            f"({text}). A smaller or quantized model (--quantize int8), a shorter context or a "
            "smaller batch needs less"
        )

    def _fill(self, buffer: Buffer, word: int) -> None:
        """Fill all of a buffer with a word, in parts that a kernel can see."""
        most, words = self.caps.binding_bytes // 4, buffer.block.size // 4
        for start in range(0, words, most):
            shape = (min(most, words - start),)
            part = GpuArray(buffer, shape, dtypes.uint32, (1,), start)
            vectors, first = shape[0] // 4, self.offset(part) // 4
            params = (vectors, first, word)
            self.launch("device", "fill", -(-vectors // 256), [], [part], params, COPY=False)

    def memory_bandwidth(self) -> float:
        """Of a copy, bytes read and written; the best of a few, once the clocks are up."""
        software = self.caps.kind == "software"
        nbytes = _PROBE_BYTES >> (6 if software else 0)
        nbytes = min(nbytes, self.caps.binding_bytes // 1024 * 1024)
        source, target = (self.empty((nbytes // 4,), dtypes.uint32) for _ in range(2))
        params, grid = (nbytes // 16, 0, 0), -(-nbytes // 4096)

        def copy() -> None:
            self.launch("device", "copy", grid, [source], [target], params, COPY=True)

        program: Any = self.capture(copy)[1]
        warm = 1 if software else min(math.ceil(_WARM_SECONDS / max(program.seconds(), 1e-4)), 2000)
        return 2 * nbytes / min(program.busy_seconds(5, warm))

    def used_memory(self) -> int:
        with self.queue.lock:
            self.pool.drain()
            return self.pool.allocated

    def release_memory(self) -> None:
        gc.collect()
        with self.queue.lock:
            self.queue.wait()
            self.pool.drain()
            self.pool.trim()
            self.queue.drop_staging()
            self.queue.wait()

    # -- transfer --------------------------------------------------------------------------------
    def from_numpy(self, array: np.ndarray) -> GpuArray:
        if array.dtype not in wgsl.NAMES:
            raise DTypeError(f"{self.device} holds no {array.dtype}")
        # inside a capture it is a constant, which the program keeps but never writes
        exact = array.nbytes > _POOLED
        made = self._array(array.shape, array.dtype, lambda n: self.pool.take(n, exact))
        if array.nbytes:
            self.queue.upload(made.buffer.block, np.ascontiguousarray(array))
        return made

    def to_numpy(self, x: GpuArray) -> np.ndarray:
        if self.recorder is not None:
            raise BackendError(
                "capture: a tensor's values were read on the host; they differ from run to run, "
                "so keep the computation in tensors"
            )
        return self._reading(x, self.queue.read)

    def _reading(self, x: GpuArray, read: Callable[[Any, int, int], Any]) -> Any:
        if x.size == 0:
            return np.empty(x.shape, x.dtype)
        x = self.dense(x)
        start = x.offset * x.dtype.itemsize
        if start % 4:
            x = self.copy(x)
            start = 0
        values = read(x.buffer.block, start, x.nbytes)
        if isinstance(values, np.ndarray):
            return values.view(x.dtype).reshape(x.shape)
        return lambda: values().view(x.dtype).reshape(x.shape)

    def start_read(self, x: GpuArray) -> Callable[[], np.ndarray]:
        result = self._reading(x, self.queue.start_read)
        return (lambda: result) if isinstance(result, np.ndarray) else result

    def dense(self, x: GpuArray) -> GpuArray:
        """x with its elements in row-major order: itself, or a copy."""
        return x if x.contiguous else self.copy(x)

    def activation_dtype(self, stored: np.dtype) -> np.dtype:
        return stored if stored in dtypes.MODEL_FLOATS else dtypes.float32

    # -- kernels and programs --------------------------------------------------------------------
    def kernel(self, op: str) -> Kernel | str:
        if op not in self._found:
            self._found[op] = find_kernel(op)
        return self._found[op]

    def offset(self, array: GpuArray) -> int:
        """Where an array's first element lies in what `launch` binds for it, in elements."""
        if array.buffer.block.size <= self.groups.caps.binding_bytes:
            return array.offset
        return array.offset - self.groups.window(array)[0] // array.dtype.itemsize

    def launch(
        self,
        family: str,
        entry: str,
        grid: int | Sequence[int],
        reads: Sequence[GpuArray],
        writes: Sequence[GpuArray],
        params: Sequence[int | float] = (),
        **values: Any,
    ) -> None:
        """Start entry point `entry` of FAMILY.wgsl in `shaders/wgsl/`, rendered with `values`.

        Args:
            grid: workgroups in x, y, z, or their number, which is folded into x and y.
            reads, writes: what is bound at 0, 1, ..., the written ones last.
            params: the fields of the source's `struct Params`, in order.
        """
        x, y, z = (*self._fold(grid), 1) if isinstance(grid, int) else grid
        if x == 0 or y == 0 or z == 0:
            return
        if max(x, y, z) > self.caps.workgroups:
            raise BackendError(
                f"{family}.{entry}[wgpu]: a grid of {(x, y, z)} workgroups is too large"
            )
        recorder = self._capture.recorder
        with self.queue.lock:
            pipeline = self.pipelines.get(family, entry, values, len(reads), len(writes))
            packed = b""
            if pipeline.pack is not None:
                packed = pipeline.packed(params)
            group = self.groups.get(pipeline, reads, writes, packed)
            size = pipeline.immediate_bytes
            command = (pipeline.handle, group.handle, packed, size, x, y, z, (group, pipeline))
            if recorder is not None:
                recorder.add(pipeline.name, command, reads, writes)
            if recorder is None and self._debug >= 2:
                self._timed(pipeline.name, command, values, (*reads, *writes))
            else:
                self.queue.add(command)

    def _timed(
        self, name: str, command: Command, values: dict[str, Any], arrays: Sequence[GpuArray]
    ) -> None:
        """BOOSTR_DEBUG=2: time and the bandwidth of touching every array once; 3: grids."""
        micro = self.clock.seconds([command]) * 1e6
        rate = sum(a.nbytes for a in arrays) / max(micro, 1e-3) / 1e3
        grid = f", grid {command[4:7]}" if self._debug >= 3 else ""
        shown = f"{name} {values or ''} {micro:.1f} us, {rate:.0f} GB/s{grid}"
        print(f"boostr: {shown}", file=sys.stderr)

    def _fold(self, count: int) -> tuple[int, int]:
        most = self.caps.workgroups
        if count <= most:
            return count, 1
        rows = -(-count // most)
        return -(-count // rows), rows

    def flush(self) -> None:
        self.queue.flush()

    def synchronize(self) -> None:
        self.queue.wait()

    def new_arena(self) -> Arena:
        return Arena(self.pool)

    def capture(self, fn: Callable[[], Any], arena: Arena | None = None) -> tuple[Any, Program]:
        if self.recorder is not None:
            raise BackendError("capture: captures cannot be nested")
        self._capture.recorder = recorder = Recorder(arena or self.new_arena())
        try:
            outputs = fn()
            program = recorder.program(self.clock, self.queue, fn, outputs)
        finally:
            self._capture.recorder = None
        return outputs, program
