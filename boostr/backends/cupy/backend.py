"""CupyBackend: primitives through CuPy, kernels of our own, programs as CUDA graphs."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cupy
import cupyx
import numpy as np
from cupyx.scipy import special

from boostr import dtypes, env
from boostr.backends.array import ArrayBackend
from boostr.backends.base import Array, Kernel, Shape
from boostr.backends.cupy.kernel_table import find_kernel
from boostr.backends.cupy.rows import pointwise
from boostr.backends.cupy.runtime.arena import Arena
from boostr.backends.cupy.runtime.device import Caps
from boostr.backends.cupy.runtime.kernels import Kernels
from boostr.errors import BackendError, DTypeError, OutOfMemoryError
from boostr.program import Program

_C_TYPES = {
    dtypes.float32: "float", dtypes.float16: "f16", dtypes.bfloat16: "bf16", dtypes.int8: "i8",
}  # fmt: skip
_PROBE_BYTES = 1 << 29
_UNKNOWN = (dtypes.float8_e4m3, dtypes.float8_e5m2)  # CuPy has no such arrays


_put_rows = cupy.ElementwiseKernel(
    "I index, T value, int64 width", "raw T target",
    "if (index >= 0) target[index * width + i % width] = value;", "boostr_put_rows",
)  # fmt: skip


class _Capture(threading.local):
    """What is true of this thread alone."""

    capturing = False  # its launches are being recorded
    early = False  # products may fetch their weights before the kernels ahead have ended

    def __init__(self) -> None:
        self.constants: list[Any] = []  # that it has uploaded


class CupyBackend(ArrayBackend):
    """Tensors are cupy arrays on one GPU. Work goes to CuPy's current stream, which threads share
    unless they choose others; a capture has a stream and an allocator of its thread's own.

    Attributes:
        caps: what the GPU can do.
        whole: held while something is launched that no other thread may come between: the kernels
            of a product, which share a workspace that programs use, too.
    """

    name = "cupy"
    prefill_chunk, prefill_beside = 2048, 512
    records_prefill, text_tokens = True, 8192
    kv_block, sequence_rows, row_buckets = 128, 256, (1, 4, 16, 32, 64, 128, 256)
    run_ahead = 2
    joins_weights = True

    def __init__(self, index: int) -> None:
        count = cupy.cuda.runtime.getDeviceCount()
        if index >= count:
            raise BackendError(f"backend cupy:{index}: this machine has {count} CUDA device(s)")
        super().__init__(cupy)
        self.caps = Caps.read(index)
        self._capture, self.whole = _Capture(), threading.Lock()
        self._kernels = Kernels(self.caps.arch)
        self._found: dict[str, Kernel | str] = {}
        self._debug = env.DEBUG.integer()
        cupy.cuda.Device(index).use()
        cupy.cuda.runtime.free(0)  # creates the context
        self._taken_at_start = self._taken()
        if self._debug >= 1:
            print(f"boostr: {self.device}: {self.caps}", file=sys.stderr)

    @property
    def capturing(self) -> bool:
        """Whether this thread's launches are being recorded."""
        return self._capture.capturing

    @property
    def early(self) -> bool:
        """Whether products may fetch their weights before the kernels ahead have ended."""
        return self._capture.early

    @property
    def device(self) -> str:
        return f"cupy:{self.caps.index}"

    # -- creation and transfer -------------------------------------------------------------------
    def _run(self, fn: Callable[..., Array], *args: Any) -> Array:
        self._use()
        try:
            return fn(*args)
        except cupy.cuda.memory.OutOfMemoryError:
            self.release_memory()  # what nobody uses any more may be enough
        try:
            return fn(*args)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise self._out_of_memory(error) from None

    def _use(self) -> None:
        """Make this GPU the thread's current one."""
        if cupy.cuda.runtime.getDevice() != self.caps.index:
            cupy.cuda.runtime.setDevice(self.caps.index)

    def _out_of_memory(self, error: Exception) -> OutOfMemoryError:
        """What to say when memory runs out; gives back what CuPy keeps for reuse."""
        self.release_memory()
        free, total = cupy.cuda.runtime.memGetInfo()
        return OutOfMemoryError(
            f"{self.device} is out of memory: {error}; {free / 2**30:.2f} of {total / 2**30:.2f} "
            "GiB are free now. A smaller or quantized model (--quantize int8), a shorter context "
            "or a smaller batch needs less"
        )

    def _concat(self, axis: int, *arrays: Array) -> Array:
        if not self.capturing:
            return super()._concat(axis, *arrays)
        shape = list(arrays[0].shape)  # CuPy would upload pointers, which no capture takes
        shape[axis] = sum(x.shape[axis] for x in arrays)
        out, start = cupy.empty(shape, np.result_type(*(x.dtype for x in arrays))), 0
        for x in arrays:
            stop = start + x.shape[axis]
            out[(*(slice(None),) * axis, slice(start, stop))] = x
            start = stop
        return out

    def from_numpy(self, array: np.ndarray) -> Array:
        if array.dtype in _UNKNOWN:
            raise DTypeError(f"{self.device} holds no {array.dtype}")
        if not self.capturing:
            return self._run(cupy.asarray, array)
        # a constant of the function being recorded: uploaded now, beside the capture
        with cupy.cuda.Stream(non_blocking=True) as beside:
            made = self.lasting(cupy.asarray, array)
            beside.synchronize()
        self._capture.constants.append(made)
        return made

    def lasting(self, make: Callable[..., Array], *args: Any) -> Array:
        """What `make` allocates, in memory of its own also inside a capture."""
        with cupy.cuda.using_allocator(None if self.capturing else cupy.cuda.get_allocator()):
            return self._run(make, *args)

    def to_numpy(self, x: Array) -> np.ndarray:
        if self.capturing:
            raise BackendError(
                "capture: a tensor's values were read on the host; they differ from run to run, "
                "so keep the computation in tensors"
            )
        self._use()
        return cupy.asnumpy(x)

    def start_read(self, x: Array) -> Callable[[], np.ndarray]:
        self._use()
        stream = cupy.cuda.get_current_stream()
        values = cupyx.empty_pinned(x.shape, x.dtype)
        self.dense(x).get(stream=stream, out=values, blocking=False)
        done = cupy.cuda.Event(block=False, disable_timing=True)
        done.record(stream)

        def wait() -> np.ndarray:
            done.synchronize()
            return values

        return wait

    def activation_dtype(self, stored: np.dtype) -> np.dtype:
        if stored == dtypes.bfloat16 and self.caps.compute_capability < 80:
            return dtypes.float32  # Turing's tensor cores and arithmetic know no bf16
        return stored if stored in dtypes.MODEL_FLOATS else dtypes.float32

    def empty(self, shape: Shape, dtype: Any = np.float32) -> Array:
        """Uninitialised memory; inside a capture it belongs to the program."""
        return self._run(cupy.empty, shape, dtype)

    def dense(self, x: Array) -> Array:
        """x with its elements in row-major order: itself, or a copy."""
        return x if x.flags.c_contiguous else self.copy(x)

    # -- where CuPy differs from numpy -----------------------------------------------------------
    def binary(self, name: str, a: Array, b: Array | float | int, dtype: np.dtype) -> Array:
        if pointwise.combines(name, a, b, dtype):
            return pointwise.combine(self, name, a, b)
        return super().binary(name, a, b, dtype)

    def cast(self, x: Array, dtype: np.dtype) -> Array:
        if pointwise.converts(x, dtype):
            return pointwise.convert(self, x, dtype)
        return super().cast(x, dtype)

    def where(self, condition: Array, a: Array, b: Array, dtype: np.dtype) -> Array:
        made = super().where(condition, a, b, dtype)
        return made if made.dtype == dtype else self.cast(made, dtype)  # scalars widen bf16

    def _erf(self, x: Array) -> Array:
        if x.dtype == dtypes.float64:
            return special.erf(x)
        return special.erf(x.astype(np.float32, copy=False)).astype(x.dtype, copy=False)

    def _argsort(self, x: Array, axis: int) -> Array:
        if x.dtype in dtypes.LOW_PRECISION:
            x = x.astype(np.float32)
        return cupy.argsort(x, axis=axis, kind="stable").astype(dtypes.int32)

    def _matmul(self, a: Array, b: Array) -> Array:
        if not dtypes.is_float(a.dtype):
            return cupy.matmul(a, b)
        from boostr.backends.cupy.products import blas

        return blas.matmul(self, a, b)

    def _scatter_add(self, shape: Shape, indices: Array, values: Array) -> Array:
        wide = dtypes.float32 if values.dtype in dtypes.LOW_PRECISION else values.dtype
        out = cupy.zeros(shape, wide)
        cupy.add.at(out, indices, values.astype(wide, copy=False))
        return out.astype(values.dtype, copy=False)

    def put_rows(self, target: Array, indices: Array, values: Array) -> None:
        width = values.size // max(len(indices), 1)
        if not values.size:
            return
        rows, flat = indices, values.ravel()
        if width > 1:
            shape = (len(indices), width)
            rows, flat = cupy.broadcast_to(indices[:, None], shape), flat.reshape(shape)
        self._run(_put, rows, flat.astype(target.dtype, copy=False), width, target)

    # -- kernels and programs --------------------------------------------------------------------
    def kernel(self, op: str) -> Kernel | str:
        if op not in self._found:
            self._found[op] = find_kernel(op)
        return self._found[op]

    def c_type(self, dtype: np.dtype) -> str:
        """The name in `prelude.cuh` of float32, float16, bfloat16 or int8."""
        return _C_TYPES[dtype]

    def stream_pointer(self) -> int:
        """CUDA's handle of the current stream."""
        self._use()
        return cupy.cuda.get_current_stream().ptr

    def launch(
        self,
        family: str,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        dependent: bool = False,
        **defines: int | str,
    ) -> None:
        """Start kernel `name` of FAMILY.cu in `shaders/cuda/`, specialised by `defines`.

        `args` are arrays, None, int (`int`), float (`float`), numpy.int64 and bytes; `dependent`
        lets it begin before the kernel before it has ended (see `pdl_wait` in prelude.cuh).
        """
        stream = self.stream_pointer()
        dependent = dependent and self.caps.compute_capability >= 90
        start = cupy.cuda.Event() if self._debug >= 2 and not self.capturing else None
        if start is not None:
            start.record()
        self._kernels.launch(
            family, name, grid, block, args, stream=stream, shared_bytes=shared_bytes,
            dependent=dependent, **defines,
        )  # fmt: skip
        if start is not None:
            self._report(start, f"{family}.{name} {defines or ''}", (grid, block), args)

    def _report(self, start: Any, name: str, shape: tuple, args: Sequence[Any]) -> None:
        """BOOSTR_DEBUG=2: time and the bandwidth of touching every array once; 3: grids."""
        end = cupy.cuda.Event()
        end.record()
        end.synchronize()
        micro = cupy.cuda.get_elapsed_time(start, end) * 1e3
        touched = sum(a.nbytes for a in args if hasattr(a, "nbytes") and hasattr(a, "data"))
        grid = f", grid {shape[0]} of {shape[1]}" if self._debug >= 3 else ""
        rate = touched / max(micro, 1e-3) / 1e3
        print(f"boostr: {name} {micro:.1f} us, {rate:.0f} GB/s{grid}", file=sys.stderr)

    def synchronize(self) -> None:
        self._use()
        cupy.cuda.get_current_stream().synchronize()

    def _taken(self) -> int:
        free, total = cupy.cuda.runtime.memGetInfo()
        return total - free

    def used_memory(self) -> int:
        return max(0, self._taken() - self._taken_at_start)

    def free_memory(self) -> int:
        """What the device has free, and what CuPy keeps for reuse."""
        self._use()
        return cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()

    def release_memory(self) -> None:
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()

    def memory_bandwidth(self) -> float:
        """Of a copy, bytes read and written; the best of a few."""
        self._use()
        source = cupy.arange(_PROBE_BYTES // 8)
        target = cupy.empty_like(source)
        events = [cupy.cuda.Event() for _ in range(6)]
        for event in events:
            event.record()
            target[...] = source
        events[-1].synchronize()
        times = [cupy.cuda.get_elapsed_time(*pair) for pair in itertools.pairwise(events[1:])]
        return 2 * _PROBE_BYTES / (min(times) * 1e-3)

    @contextmanager
    def constant_weights(self) -> Iterator[None]:
        before, self._capture.early = self._capture.early, True
        try:
            yield
        finally:
            self._capture.early = before

    def new_arena(self) -> Arena:
        self._use()
        return Arena()

    def capture(self, fn: Callable[[], Any], arena: Arena | None = None) -> tuple[Any, Program]:
        if self.capturing:
            raise BackendError("capture: captures cannot be nested")
        from boostr.backends.cupy.runtime.program import record

        arena = arena or self.new_arena()
        self._capture.capturing, self._capture.constants = True, []
        try:
            return record(fn, self._use, self.whole, arena, self._capture.constants)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise self._out_of_memory(error) from None
        finally:
            self._capture.capturing = False


def _put(rows: Array, values: Array, width: int, target: Array) -> None:
    _put_rows(rows, values, width, target)
