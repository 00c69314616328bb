"""Arena: memory for the intermediate results of programs that never run at the same time."""

from __future__ import annotations

from collections import deque
from typing import Any

import cupy

_LEAST = 512  # bytes, to which CuPy's pools round
_FINE_ABOVE, _GRAIN = 1 << 24, 1 << 20  # bytes; above, blocks are multiples of the grain


class Arena:
    """Blocks that every program of the arena uses from the start. What a program's arrays held is
    the next one's to write, though they live on: they are read between runs, or never again."""

    def __init__(self) -> None:
        self._pool = cupy.cuda.MemoryPool()
        self._blocks: list[tuple[int, Any]] = []  # bytes, CuPy's pointer
        self.begin()

    def begin(self) -> None:
        """Another program is recorded."""
        self._returned: deque[tuple[int, Any]] = deque()  # arrays of earlier ones go elsewhere
        self._free: dict[int, list[tuple[int, Any]]] = {}
        self._returned.extend(self._blocks)

    def malloc(self, nbytes: int) -> cupy.cuda.MemoryPointer:
        """An allocator for CuPy, for arrays that are made while a program is recorded."""
        while self._returned:
            block = self._returned.popleft()
            self._free.setdefault(block[0], []).append(block)
        size = _size_class(nbytes)
        free = self._free.get(size)
        if free:
            block = free.pop()
        else:
            block = (size, self._pool.malloc(size))
            self._blocks.append(block)
        pointer = block[1]
        owner = _Piece(block, self._returned)
        memory = cupy.cuda.UnownedMemory(pointer.ptr, size, owner, pointer.device_id)
        return cupy.cuda.MemoryPointer(memory, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(size for size, _ in self._blocks)


class _Piece:
    """A block while an array has it; its memory lives as long as either."""

    __slots__ = ("_block", "_returned")

    def __init__(self, block: tuple[int, Any], returned: deque[tuple[int, Any]]) -> None:
        self._block, self._returned = block, returned

    def __del__(self) -> None:
        self._returned.append(self._block)  # nothing else: a collection may run anywhere


def _size_class(nbytes: int) -> int:
    """Powers of two in four steps; above 16 MiB multiples of 1 MiB."""
    if nbytes > _FINE_ABOVE:
        return -(-nbytes // _GRAIN) * _GRAIN
    step = max(1 << max((nbytes - 1).bit_length() - 3, 0), _LEAST)
    return max(_LEAST, -(-nbytes // step) * step)
