"""NumpyBackend: primitives through numpy, kernels through `launch`, programs as lists of calls."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import env
from boostr.backends.array import ArrayBackend
from boostr.backends.base import Array, Kernel, KernelClock
from boostr.backends.numpy.kernel_table import find_kernel
from boostr.backends.numpy.runtime import blocks, jit, memory, slabs, threads
from boostr.errors import BackendError
from boostr.program import Program

if TYPE_CHECKING:
    from boostr.backends.numpy.runtime.program import Recorder


class _Capture(threading.local):
    """What this thread records; None outside of a capture."""

    recorder: Recorder | None = None


class NumpyBackend(ArrayBackend):
    """Tensors are numpy arrays, shared with the caller and never copied without need."""

    name = "numpy"
    repeats_bits = True
    text_tokens = 1024  # whose hidden states stay in the caches

    def __init__(self) -> None:
        super().__init__(np)
        self._capture = _Capture()
        self._kernels: dict[str, Kernel | str] = {}
        self._debug = env.DEBUG.integer()

    @property
    def recorder(self) -> Recorder | None:
        """Of the capture that this thread is in; others run beside it unrecorded."""
        return self._capture.recorder

    @property
    def device(self) -> str:
        return "numpy"

    def free_memory(self) -> int | None:
        return memory.available()

    def from_numpy(self, array: np.ndarray) -> Array:
        return array

    def owned(self, x: Array) -> Array:
        return self.copy(x)  # of a mapped file, or of what somebody gave

    def is_writable(self, x: Array) -> bool:
        return x.flags.writeable

    def assign(self, target: Array, source: Array) -> None:
        if not target.flags.writeable:
            raise BackendError(
                "assign: expected values that may be written, got a view of a file or of a "
                "read-only array; load the model with trainable=True, or put a tensor of its own "
                "in its place"
            )
        super().assign(target, source)

    def to_numpy(self, x: Array) -> np.ndarray:
        if self.recorder is not None:
            raise BackendError(
                "capture: a tensor's values were read on the host; they differ from run to run, "
                "so keep the computation in tensors"
            )
        return x

    def _run(self, fn: Callable[..., Array], *args: Any) -> Array:
        result = fn(*args)
        if result is not None:
            result = np.asarray(result)  # ufuncs of tensors without axes return scalars
        recorder = self._capture.recorder
        if recorder is not None:
            result = recorder.python_call(fn, args, result)
        return result

    def _erf(self, x: np.ndarray) -> np.ndarray:
        if x.dtype == np.float64:
            return _erf_float64(x)
        return erf_float32(x.astype(np.float32, copy=False)).astype(x.dtype, copy=False)

    # -- kernels and programs --------------------------------------------------------------------
    def kernel(self, op: str) -> Kernel | str:
        if op not in self._kernels:
            self._kernels[op] = find_kernel(op)
        return self._kernels[op]

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Memory for a kernel's output: of results that are dead, in a capture of the program's
        arena."""
        recorder = self._capture.recorder
        if recorder is not None:
            return recorder.arena.empty(shape, np.dtype(dtype))
        return blocks.empty(shape, dtype)

    def room(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """`empty` for weights, which last."""
        return self.empty(shape, dtype) if self.recorder is not None else slabs.take(shape, dtype)

    def dense(self, x: Array) -> Array:
        """x with its elements in row-major order: itself, or a copy."""
        return x if x.flags.c_contiguous else self.copy(x)

    def launch(
        self,
        name: str,
        params: Sequence[int],
        *,
        items: int,
        grain: int,
        reads: Sequence[np.ndarray],
        writes: Sequence[np.ndarray],
        **constants: Any,
    ) -> None:
        """Run the kernel `name` specialised by `constants` over `items`, at most `grain` at a time.

        `params` are its int64 words (`address`, sizes, `jit.float_bits`); `reads` and `writes` are
        the arrays whose memory it touches, from which a program knows what may run side by side.
        """
        if items <= 0:
            return
        words = np.array(params, np.int64)
        function = jit.kernel(name, **constants)
        started = time.perf_counter()
        threads.run_one(function, address(words), items, grain)
        if self._debug >= 2:
            seconds = time.perf_counter() - started
            touched = sum(x.nbytes for x in (*reads, *writes))
            grid = f", {items} items by {grain}" if self._debug >= 3 else ""
            print(
                f"boostr: {name} {constants or ''} {seconds * 1e6:.0f} us, "
                f"{touched / seconds / 1e9:.1f} GB/s{grid}",
                file=sys.stderr,
            )
        recorder = self._capture.recorder
        if recorder is not None:
            recorder.native_call((name, function, words, items, grain), reads, writes)

    def timed_kernels(self) -> AbstractContextManager[KernelClock]:
        return threads.pool().timed() if jit.available() else nullcontext(KernelClock())

    @property
    def compiled_kernels(self) -> int:
        return jit.compiled

    def synchronize(self) -> None:
        """Nothing to wait for: calls return when they are done."""

    def new_arena(self) -> Any:
        from boostr.backends.numpy.runtime.program import Arena

        return Arena()

    def capture(self, fn: Callable[[], Any], arena: Any = None) -> tuple[Any, Program]:
        if self.recorder is not None:
            raise BackendError("capture: captures cannot be nested")
        from boostr.backends.numpy.runtime.program import NumpyProgram, Recorder

        self._capture.recorder = recorder = Recorder(arena or self.new_arena())
        try:
            outputs = fn()
            return outputs, NumpyProgram(recorder)
        finally:
            self._capture.recorder = None


def address(x: np.ndarray) -> int:
    """Where x's first element lies, as a kernel parameter."""
    return x.__array_interface__["data"][0]


def _erf_float64(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if x.size else x.copy()


_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def erf_float32(x: np.ndarray) -> np.ndarray:
    """erf as x·P(x²)/Q(x²) on [-4, 4], where it rounds to ±1 outside; a few ulp of float32.

    The coefficients are the rational fit that Eigen and XLA use.
    """
    x = np.clip(x, np.float32(-4), np.float32(4))
    square = x * x
    return x * _horner(square, _ERF_P) / _horner(square, _ERF_Q)


def _horner(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    total = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + np.float32(c)
    return total
