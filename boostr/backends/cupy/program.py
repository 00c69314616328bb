"""Programs as CUDA graphs: one launch for everything that was recorded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import cupy

from boostr.backends.cupy import driver
from boostr.program import Program


class CudaProgram(Program):
    """A CUDA graph, and what must live as long as it does.

    Args:
        graph: CuPy's instantiated graph.   names: of our kernels in it, in order of launch.
        keep: the recorded function (and so the tensors it uses) and the memory pool of the capture.
    """

    def __init__(self, graph: Any, names: list[str], keep: tuple[Any, ...]) -> None:
        self._graph, self._names, self._keep = graph, names, keep

    def run(self) -> Any:
        self._graph.launch(cupy.cuda.get_current_stream())
        return self.outputs

    def __len__(self) -> int:
        count = ctypes.c_size_t()
        status = driver.library().cuGraphGetNodes(
            ctypes.c_void_p(self._graph.graph), None, ctypes.byref(count)
        )
        driver.check(status, "reading a graph")
        return count.value

    def describe(self) -> list[str]:
        return self._names


def record(fn: Callable[[], Any], names: list[str]) -> tuple[Any, CudaProgram]:
    """Record what `fn` launches, then launch it once: its effects happen exactly once.

    Memory made inside comes from a pool of the program's own, so that nothing else is ever given
    what the graph writes to. Kernels are compiled and loaded while recording (relaxed mode).
    """
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(pool.malloc), stream:
        stream.begin_capture()
        try:
            outputs = fn()
        except BaseException:
            _abandon(stream)
            raise
        graph = stream.end_capture()
    program = CudaProgram(graph, names, (fn, outputs, pool, stream))
    program.run()
    return outputs, program


def _abandon(stream: cupy.cuda.Stream) -> None:
    """End a capture that failed; the error that made it fail is the one to report."""
    try:
        stream.end_capture()
    except cupy.cuda.runtime.CUDARuntimeError:
        return
