"""Memory for weights: pieces of large allocations, which the system backs with large pages.

A model has hundreds of arrays of less than the 4 MiB from which numpy asks for large pages. On
small ones their first use costs as much as filling them, and every product misses in the TLB.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from typing import Any

import numpy as np

_SLAB = 1 << 25  # bytes
_BORDER = 64  # where a piece begins: a cache line, which is also the widest vector
_lock = threading.Lock()
_used = _SLAB  # bytes of the last slab that are taken
_last: weakref.ref[np.ndarray] | None = None  # that slab, while something in it lives
if hasattr(os, "register_at_fork"):  # the child has no thread that would give it back
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def take(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array whose elements are not set."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > _SLAB // 2:
        slab, start = np.empty(nbytes + _BORDER, np.uint8), 0
    else:
        slab, start = _room(nbytes)
    start += -(slab.ctypes.data + start) % _BORDER
    return slab[start : start + nbytes].view(dtype).reshape(shape)


def _room(nbytes: int) -> tuple[np.ndarray, int]:
    """(a slab, where in it the piece has room)."""
    global _used, _last
    need = nbytes + _BORDER
    with _lock:
        slab = _last and _last()
        if slab is None or _used + need > _SLAB:
            slab, _used = np.empty(_SLAB, np.uint8), 0
            _last = weakref.ref(slab)
        start, _used = _used, _used + need
        return slab, start
