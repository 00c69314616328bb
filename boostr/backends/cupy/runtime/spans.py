"""Spans: the free ranges of segments of memory, from which pieces are cut and to which they come
back."""

from __future__ import annotations

from bisect import bisect_left, insort

Place = tuple[int, int]  # number of a segment, offset in it


class Spans:
    """A piece is the start of the smallest range that holds it; neighbours that are free are one.

    Attributes:
        sizes: of the segments.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.free_all()

    def free_all(self) -> None:
        """All segments are free, whatever was cut from them."""
        self._by_size = sorted((n, i, 0) for i, n in enumerate(self.sizes))
        self._size_at: dict[Place, int] = {(i, 0): n for i, n in enumerate(self.sizes)}
        self._start_of: dict[Place, int] = dict.fromkeys(enumerate(self.sizes), 0)  # by ends

    def add(self, size: int) -> None:
        """Another segment."""
        self.sizes.append(size)
        self._insert(len(self.sizes) - 1, 0, size)

    def take(self, size: int) -> Place | None:
        """A piece, if there is a range for it."""
        at = bisect_left(self._by_size, (size, -1, -1))
        if at == len(self._by_size):
            return None
        whole, segment, start = self._by_size[at]
        self._remove(segment, start, whole)
        if whole > size:
            self._insert(segment, start + size, whole - size)
        return segment, start

    def give(self, place: Place, size: int) -> None:
        """A piece comes back."""
        (segment, start), end = place, place[1] + size
        before = self._start_of.get((segment, start))
        if before is not None:
            self._remove(segment, before, start - before)
            start = before
        behind = self._size_at.get((segment, end))
        if behind is not None:
            self._remove(segment, end, behind)
            end += behind
        self._insert(segment, start, end - start)

    def _insert(self, segment: int, start: int, size: int) -> None:
        insort(self._by_size, (size, segment, start))
        self._size_at[segment, start] = size
        self._start_of[segment, start + size] = start

    def _remove(self, segment: int, start: int, size: int) -> None:
        del self._by_size[bisect_left(self._by_size, (size, segment, start))]
        del self._size_at[segment, start], self._start_of[segment, start + size]
