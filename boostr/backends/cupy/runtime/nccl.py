"""Ranks on NVIDIA GPUs: NCCL through CuPy, in one process with a thread for each GPU.

NCCL's kernels wait for those of the other GPUs. Two rules follow. No call of CUDA may come between
the launches of the ranks, as it could wait for a kernel that waits for a launch behind it; so ranks
meet before and after they launch (see `train.step`). And graphs that hold NCCL's calls must end
before their communicator: until then NCCL's own end waits, so it waits in a thread of its own.
Sources: NCCL's user guide, "Using NCCL with CUDA Graphs" and "Concurrency between NCCL and CUDA
calls"; CuPy's reference, `cupy.cuda.nccl`.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cupy

from boostr.backends.base import Array
from boostr.backends.collectives import Alone, Communicator, Group
from boostr.backends.cupy.backend import CupyBackend
from boostr.errors import BackendError

_PATIENCE = 10.0  # seconds that the end of a run waits for NCCL's


def library() -> Any:
    """CuPy's `nccl`; BackendError with the pip line where NCCL is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what CuPy says of a missing library is said here
        from cupy.cuda import nccl
    if not nccl.available:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        raise BackendError(
            "several GPUs train together through NCCL, which was not found; "
            f"pip install 'boostr[nccl{major}]'"
        )
    return nccl


class NcclRank(Communicator):
    """A rank of `NcclCommunicator.initAll`."""

    backend: CupyBackend

    def __init__(self, group: Group, rank: int, backend: CupyBackend, communicator: Any) -> None:
        super().__init__(group, rank, backend)
        self._nccl, self._communicator = library(), communicator
        self._lock, self._ended = threading.Lock(), False
        # ends kernels that wait for others
        group.on_failure(lambda: _apart(lambda: self._end(communicator.abort)))

    def all_reduce(self, arrays: Sequence[Array]) -> None:
        """All arrays as one group, which NCCL sends together."""
        nccl, stream = self._nccl, self.backend.stream_pointer()
        nccl.groupStart()
        for x in arrays:
            at, kind = x.data.ptr, nccl.NCCL_FLOAT64 if x.itemsize == 8 else nccl.NCCL_FLOAT32
            self._communicator.allReduce(at, at, x.size, kind, nccl.NCCL_SUM, stream)
        nccl.groupEnd()

    def begin(self) -> None:
        """Connect the GPUs, before a capture needs them to be."""
        self.all_reduce([self.backend.empty((1,))])
        self.backend.synchronize()

    def close(self) -> None:
        gc.collect()  # a program and what it was recorded of hold each other
        nccl = self._communicator
        do = nccl.destroy if self.group.failure is None else nccl.abort
        # a process that ends while NCCL does would crash
        _apart(lambda: self._end(do)).join(_PATIENCE)

    def _end(self, do: Callable[[], object]) -> None:
        """End the communicator, which has one end."""
        with self._lock:
            if not self._ended:
                do()
                self._ended = True


def _apart(do: Callable[[], None]) -> threading.Thread:
    """A thread that does it, for which a process does not wait in the end."""
    thread = threading.Thread(target=do, name="boostr-nccl", daemon=True)
    thread.start()
    return thread


def open_ranks(opened: Sequence[Any]) -> list[Communicator]:
    """A rank for each of these backends."""
    if len(opened) == 1:
        return [Alone(opened[0])]
    group = Group(len(opened))
    made = library().NcclCommunicator.initAll([backend.caps.index for backend in opened])
    pairs = zip(opened, made, strict=True)
    return [NcclRank(group, rank, *pair) for rank, pair in enumerate(pairs)]
