"""Arena: memory for the intermediate results of programs that never run at the same time."""

from __future__ import annotations

from collections import deque
from typing import Any

import cupy

from boostr.backends.cupy.runtime.spans import Place, Spans

_GRAIN = 512  # bytes, to which pieces are rounded
_SMALL = 1 << 20  # bytes; such pieces lie apart, as each would split what a large one needs
_SEGMENT = 4 << 20  # bytes of a segment of small pieces
_PAGE = 2 << 20  # bytes, of which the device gives whole ones; segments of large pieces have as
# many as the piece for which they are made


class Arena:
    """Segments that every program of the arena uses from the start. What a program's arrays held is
    the next one's to write, though they live on: they are read between runs, or never again."""

    def __init__(self) -> None:
        self._pool = cupy.cuda.MemoryPool()
        self._spans = Spans(), Spans()  # of small pieces and of large ones
        self._segments: tuple[list[Any], list[Any]] = [], []  # CuPy's pointers
        self.begin()

    def begin(self) -> None:
        """Another program is recorded."""
        self._returned: deque[_Piece] = deque()  # arrays of earlier ones go elsewhere
        for spans in self._spans:
            spans.free_all()

    def malloc(self, nbytes: int) -> cupy.cuda.MemoryPointer:
        """An allocator for CuPy, for arrays that are made while a program is recorded."""
        while self._returned:
            kind, place, size = self._returned.popleft()
            self._spans[kind].give(place, size)
        size = max(-(-nbytes // _GRAIN), 1) * _GRAIN
        kind = int(size > _SMALL)
        spans, segments = self._spans[kind], self._segments[kind]
        place = spans.take(size)
        if place is None:
            grown = -(-size // _PAGE) * _PAGE if kind else _SEGMENT
            segments.append(self._pool.malloc(grown))
            spans.add(grown)
            place = spans.take(size)
            assert place is not None
        segment = segments[place[0]]
        owner = _Owner((kind, place, size), self._returned, segment)
        memory = cupy.cuda.UnownedMemory(segment.ptr + place[1], size, owner, segment.device_id)
        return cupy.cuda.MemoryPointer(memory, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(sum(spans.sizes) for spans in self._spans)


_Piece = tuple[int, Place, int]  # small or large, where, bytes


class _Owner:
    """A piece while an array has it; its segment lives as long as that or the arena."""

    __slots__ = ("_piece", "_returned", "_segment")

    def __init__(self, piece: _Piece, returned: deque[_Piece], segment: Any) -> None:
        self._piece, self._returned, self._segment = piece, returned, segment

    def __del__(self) -> None:
        self._returned.append(self._piece)  # nothing else: a collection may run anywhere
