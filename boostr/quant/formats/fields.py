"""Tensors of packed weights: along which axis of the weight each of their axes goes, for how many
of its rows or inputs an element is, and how codes lie in words. Both ways, by rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from boostr import dtypes

Index = range | np.ndarray  # what is taken along one axis: evenly spaced, or any


class Stored(Protocol):
    """A tensor of a checkpoint."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def array(self) -> np.ndarray:
        """All of it, as a view of the file."""
        ...


@dataclass(frozen=True)
class Packing:
    """Codes of `bits` in words of `word` bytes: code i of a unit begins at bit `starts[i]` of its
    words, which lie end to end, the lowest byte first."""

    bits: int
    starts: tuple[int, ...]
    word: int = 4

    @property
    def unit_words(self) -> int:
        """Words of a unit."""
        return -(-(max(self.starts) + self.bits) // (8 * self.word))

    def words(self, count: int) -> int:
        """Words that so many codes take."""
        whole, rest = divmod(count, len(self.starts))
        end = max(self.starts[:rest], default=-self.bits) + self.bits
        return whole * self.unit_words - (-end // (8 * self.word))

    def unpacked(self, words: np.ndarray) -> np.ndarray:
        """Codes uint8 [N, codes] of whole units in words [N, W]; a unit may lack its end."""
        N, size = len(words), self.unit_words * self.word
        raw = np.ascontiguousarray(words).view(np.uint8)
        if self.starts == tuple(range(0, 8 * size, self.bits)):
            return _spread(raw, self.bits)
        raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % size))).reshape(N, -1, size)
        out = np.empty((*raw.shape[:2], len(self.starts)), np.uint8)
        for i, (at, shift) in enumerate(divmod(start, 8) for start in self.starts):
            code = raw[..., at] >> shift
            if shift + self.bits > 8:
                code |= raw[..., at + 1] << 8 - shift
            np.bitwise_and(code, (1 << self.bits) - 1, out=out[..., i])
        return out.reshape(N, -1)

    def packed(self, codes: np.ndarray) -> np.ndarray:
        """Words uint8 [N, W · word] of codes uint8 [N, codes]."""
        N, count = codes.shape
        units = np.pad(codes, ((0, 0), (0, -count % len(self.starts))))
        units = units.reshape(N, -1, len(self.starts))
        raw = np.zeros((*units.shape[:2], self.unit_words * self.word), np.uint8)
        for i, (at, shift) in enumerate(divmod(start, 8) for start in self.starts):
            raw[..., at] |= units[..., i] << shift
            if shift + self.bits > 8:
                raw[..., at + 1] |= units[..., i] >> 8 - shift
        return np.ascontiguousarray(raw.reshape(N, -1)[:, : self.words(count) * self.word])


def _spread(raw: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 of rows of bytes [N, B] where code i begins at bit i · bits.

    Eight at a time lie in a word of 64 bits: its upper half moves to where four bytes have room,
    then the upper halves of both halves, then those of all four quarters.
    """
    N = len(raw)
    raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % bits))).reshape(-1, bits)
    if bits in (1, 2, 4):
        x = raw.view(f"<u{bits}").reshape(-1).astype(np.uint64)
    else:
        units = np.zeros((len(raw), 8), np.uint8)
        for i in range(bits):
            units[:, i] = raw[:, i]
        x = units.view("<u8").reshape(-1)
    for codes in (4, 2, 1):
        width, lane = codes * bits, codes * 8
        low = sum((1 << width) - 1 << 2 * lane * i for i in range(4 // codes))
        x = x & np.uint64(low) | (x & np.uint64(low << width)) << np.uint64(lane - width)
    return x.view(np.uint8).reshape(N, -1)


@cache
def dense(bits: int, word: int = 4) -> Packing:
    """Code i at bit i · bits."""
    return Packing(bits, tuple(range(0, int(np.lcm(bits, 8 * word)), bits)), word)


@cache
def spaced(bits: int) -> Packing:
    """As many codes as fit into each word of 32 bits."""
    return Packing(bits, tuple(range(0, 33 - bits, bits)))


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor along one of the weight: an element for each `group` indices, 0 for all;
    or, with a packing, codes of one index each."""

    group: int = 1
    packing: Packing | None = None

    def size(self, count: int) -> int:
        """Elements for so many indices."""
        if self.packing is not None:
            return self.packing.words(count)
        return -(-count // self.group) if self.group else 1

    def covering(self, index: Index, size: int) -> tuple[Index, Index]:
        """(elements that are read for `index`, where what is asked for lies in what they hold),
        of a tensor with `size` elements along the axis."""
        if not self.group:
            return range(1), np.zeros(len(index), np.intp)
        unit, words = self.group, 1
        if self.packing is not None:
            unit, words = len(self.packing.starts), self.packing.unit_words
        if isinstance(index, range) and index.step == 1:
            first, last = index.start // unit, -(-index.stop // unit)
            here = range(index.start - first * unit, index.stop - first * unit)
            return range(first * words, min(last * words, size)), here
        if unit == 1:
            return index, range(len(index))
        numbers = np.asarray(index)
        units, place = np.unique(numbers // unit, return_inverse=True)
        elements = (units[:, None] * words + np.arange(words)).reshape(-1)
        return elements[elements < size], place * unit + numbers % unit

    def repeated(self, array: np.ndarray, here: Index) -> np.ndarray:
        """An element of axis 0 for each index, of the elements that cover them."""
        if self.packing is not None:
            array = self.packing.unpacked(array.T).T
        elif self.group > 1:
            here = np.asarray(here) // self.group
        return taken(array, 0, here)


EACH, ALL = Axis(), Axis(0)


@dataclass(frozen=True)
class Field:
    """One tensor of a weight [N, K].

    Attributes:
        name: what its name ends with.   dtypes: those that it may have.
        rows, columns: its two axes. One that is for all rows or columns may be left out of the
            tensor's shape.
        turned: whether they lie [columns, rows].
        view: what its elements are taken for, if not what the file says.
    """

    name: str
    rows: Axis
    columns: Axis
    dtypes: tuple[np.dtype, ...]
    turned: bool = False
    view: np.dtype | None = None

    def shape(self, N: int, K: int) -> tuple[int, int]:
        """Of the tensor that belongs to a weight [N, K]."""
        high, wide = self.rows.size(N), self.columns.size(K)
        return (wide, high) if self.turned else (high, wide)

    def fits(self, shape: tuple[int, ...], N: int, K: int) -> bool:
        """Whether a tensor of this shape can belong to a weight [N, K]."""
        whole = self.shape(N, K)
        if len(shape) == 2:
            return shape == whole
        optional = not self.columns.group and shape == whole[:1]
        return optional or (whole == (1, 1) and shape in ((), (1,)))

    def read(
        self, tensor: Stored, rows: Index, columns: range, used: Callable[[np.ndarray], None]
    ) -> np.ndarray:
        """[rows, columns or their groups]: codes unpacked, what is shared by rows repeated.

        `used` is given the part of the tensor that is read; the result may be a view of it.
        """
        array = tensor.array() if self.view is None else tensor.array().view(self.view)
        if array.ndim < 2:
            array = array.reshape(-1, 1)
        if self.turned:
            array = array.T
        high, below = self.rows.covering(rows, array.shape[0])
        wide, inside = self.columns.covering(columns, array.shape[1])
        found = taken(taken(array, 0, high), 1, wide)
        used(found)
        if self.columns.packing is not None:
            found = taken(self.columns.packing.unpacked(found), 1, inside)
        return self.rows.repeated(found, below)

    def holds(self, values: np.ndarray) -> bool:
        """Whether rows that share elements have the same `values` [N, columns]."""
        if self.rows.packing is not None or self.rows.group == 1:
            return True
        first = np.arange(len(values)) // (self.rows.group or len(values))
        return np.array_equal(values, values[first * (self.rows.group or 0)])

    def written(self, values: np.ndarray) -> np.ndarray:
        """The tensor that `read` reads as `values` [N, K or groups]."""
        if self.columns.packing is not None:
            values = self.columns.packing.packed(values).view(self.dtypes[0])
        elif self.rows.packing is not None:
            values = self.rows.packing.packed(values.T).view(self.dtypes[0]).T
        elif self.rows.group != 1:
            values = values[:: self.rows.group or len(values)]
            values = values if self.columns.group else values.reshape(-1)
        if values.dtype == dtypes.uint8:  # bytes, whatever they are of
            values = values.view(self.dtypes[0])
        return np.ascontiguousarray(values.T if self.turned else values)


def taken(array: np.ndarray, axis: int, index: Index) -> np.ndarray:
    """The elements at `index` of an axis: even steps as a view."""
    if isinstance(index, range):
        index = slice(index.start, index.stop, index.step)  # type: ignore[assignment]
    return array[(*[slice(None)] * axis, index)]


UINT8, WORDS = (dtypes.uint8,), (dtypes.int32, dtypes.uint32)
FLOATS = dtypes.MODEL_FLOATS
