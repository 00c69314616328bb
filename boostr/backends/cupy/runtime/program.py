"""Programs as CUDA graphs: one launch for everything that was recorded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import Lock
from typing import Any

import cupy

from boostr.backends.cupy.runtime import driver
from boostr.backends.cupy.runtime.arena import Arena
from boostr.program import Program

_NODE_TYPES = {1: "copy", 2: "fill"}  # CUgraphNodeType; 0 is a kernel


class _KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid_block_shared", ctypes.c_uint * 7),
        ("arguments", ctypes.c_void_p * 2),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


class CudaProgram(Program):
    """A CUDA graph, and what must live as long as it does.

    Args:
        graph: CuPy's instantiated graph.
        use: makes its GPU the thread's current one.
        whole: see `CupyBackend`.
        keep: the recorded function (and so the tensors it uses), and memory.
    """

    def __init__(
        self, graph: Any, use: Callable[[], None], whole: Lock, keep: tuple[Any, ...]
    ) -> None:
        self._graph, self._use, self._whole, self._keep = graph, use, whole, keep

    def run(self) -> Any:
        self._use()
        with self._whole:
            self._graph.launch(cupy.cuda.get_current_stream())
        return self.outputs

    def __len__(self) -> int:
        return len(_nodes(self._graph.graph))

    def calls(self) -> list[str]:
        return [_describe(node) for node in _nodes(self._graph.graph)]


def record(
    fn: Callable[[], Any], use: Callable[[], None], whole: Lock, arena: Arena, constants: list[Any]
) -> tuple[Any, CudaProgram]:
    """Record what `fn` launches, then launch it once: its effects happen exactly once.

    Memory made inside comes from the arena, so that nothing outside of its programs is ever given
    what the graph writes to. Kernels are compiled and loaded while recording (relaxed mode).

    constants: arrays that `fn` uploads, as it does so.
    """
    arena.begin()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(arena.malloc), stream:
        stream.begin_capture()
        try:
            outputs = fn()
        except BaseException:
            _abandon(stream)
            raise
        graph = stream.end_capture()
    program = CudaProgram(graph, use, whole, (fn, outputs, arena, constants, stream))
    program.run()
    return outputs, program


def _abandon(stream: cupy.cuda.Stream) -> None:
    """End a capture that failed; the error that made it fail is the one to report."""
    try:
        stream.end_capture()
    except cupy.cuda.runtime.CUDARuntimeError:
        return


def _nodes(graph: int) -> list[int]:
    """The handles of a graph's nodes, in the order in which they were recorded."""
    count = ctypes.c_size_t()
    get = driver.library().cuGraphGetNodes
    driver.check(get(ctypes.c_void_p(graph), None, ctypes.byref(count)), "reading a graph")
    if count.value == 0:
        return []  # CUDA refuses to list them
    nodes = (ctypes.c_void_p * count.value)()
    driver.check(get(ctypes.c_void_p(graph), nodes, ctypes.byref(count)), "reading a graph")
    return [node or 0 for node in nodes]


def _describe(node: int) -> str:
    """The name of a kernel, "copy" or "fill"."""
    library, kind = driver.library(), ctypes.c_int()
    status = library.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
    driver.check(status, "reading a graph's node")
    if kind.value:
        return _NODE_TYPES.get(kind.value, f"node of type {kind.value}")
    if not hasattr(library, "cuFuncGetName"):  # before CUDA 12.3
        return "kernel"
    of, name = _KernelNode(), ctypes.c_char_p()
    status = library.cuGraphKernelNodeGetParams_v2(ctypes.c_void_p(node), ctypes.byref(of))
    driver.check(status, "reading a graph's kernel")
    if of.function:
        status = library.cuFuncGetName(ctypes.byref(name), ctypes.c_void_p(of.function))
    else:
        status = library.cuKernelGetName(ctypes.byref(name), ctypes.c_void_p(of.kernel))
    driver.check(status, "reading a kernel's name")
    return name.value.decode() if name.value else "kernel"
