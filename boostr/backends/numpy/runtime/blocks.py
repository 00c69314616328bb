"""Memory of intermediate results, which goes on to others when these die.

Pages that are new to the process cost more than filling them: the system clears each one when it is
first touched. The C library gives large arrays back to the system as soon as they die.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import MutableSequence
from typing import Any

import numpy as np

from boostr.backends.numpy.runtime import threads

LEAST, MOST = 1 << 17, 1 << 24  # bytes of what is handed on; less the C library keeps by itself
_KEPT = 1 << 25  # bytes of each size, a power of two, that wait to be used again

_free: dict[int, deque[np.ndarray]] = {
    1 << bits: deque(maxlen=_KEPT >> bits)  # a full one lets its oldest go
    for bits in range(LEAST.bit_length() - 1, MOST.bit_length())
}


class Block:
    """Memory for one array, whose `base` it is; when it dies the memory is added to `free`."""

    __slots__ = ("__array_interface__", "_free", "_raw")

    def __init__(self, raw: np.ndarray, free: MutableSequence[np.ndarray], nbytes: int) -> None:
        self._raw, self._free = raw, free
        self.__array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (raw.ctypes.data, False), "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        self._free.append(self._raw)


def size_of(nbytes: int) -> int:
    """Bytes of the block for so many: a power of two."""
    return 1 << max(nbytes - 1, 0).bit_length()


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array whose elements are not set."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if not LEAST <= nbytes <= MOST:
        return np.empty(shape, dtype)
    free = _free[size_of(nbytes)]
    try:
        raw = free.pop()
    except IndexError:
        raw = threads.aligned(size_of(nbytes) // 8).view(np.uint8)
    return np.asarray(Block(raw, free, nbytes)).view(dtype).reshape(shape)
