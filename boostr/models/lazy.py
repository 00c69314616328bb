"""Weights where they lie: a shape that is known, and bytes that are read when they are asked for.

A load plan (`boostr.models.plan`) cuts, gathers, turns and stacks them without reading any; what is
read in the end are the rows and columns that were cut out, and no more. Axes count from the front:
a weight is [N, K] (outputs, inputs) or [X, N, K] (a stack of experts), a bias [N].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.backends.base import Backend
from boostr.errors import ModelFileError, NumericsError
from boostr.io.mapping import release
from boostr.nn.module import Weight
from boostr.ops.blocks import read_blocks
from boostr.tensor import Tensor

Index = range | np.ndarray  # what is taken along one axis: evenly spaced, or any
Indices = tuple[Index, ...]  # one for each axis
_BAND = 16 * 2**20  # bytes


class LazyWeight(ABC):
    """A weight that is read when it is asked for.

    Attributes:
        shape: of what `read` gives when it is asked for all.
        sources: the names in the checkpoint that it is made of.
        path: of the checkpoint, for messages.
        kind: None if `read` gives numbers; else the type of GGUF's blocks, whose bytes it gives.
        is_optional: whether a model that has no place for it is right without it, if it is 0.
    """

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    path: str
    kind: str | None = None
    is_optional: bool = False

    @abstractmethod
    def read(self, indices: Indices) -> np.ndarray:
        """The elements at the crossings of `indices`; a view of the file where that is possible."""

    def weight(self, backend: Backend) -> Weight:
        """All of it in its stored form, blocks laid out anew; on the numpy backend numbers are not
        copied if they lie in a row.

        Raises:
            ModelFileError: a dtype that boostr does not compute with.
        """
        array: np.ndarray = np.ascontiguousarray(self.read(whole(self.shape)))
        if not self.shape:
            array = array.reshape(())  # it makes [1] of one number
        if self.kind is not None:
            rows = array.reshape(-1, array.shape[-1])
            try:
                return read_blocks(self.kind, rows, self.shape, backend, release)
            except NumericsError as error:
                raise ModelFileError(
                    f"{self.path}: tensor {' + '.join(self.sources)}: {error}; the file is damaged"
                ) from None
        if array.dtype not in dtypes.MODEL_FLOATS:
            raise ModelFileError(
                f"{self.path}: tensor {' + '.join(self.sources)} is {array.dtype}; boostr reads "
                f"{', '.join(str(d) for d in dtypes.MODEL_FLOATS)}"
            )
        return Tensor(array, backend=backend)

    def take(self, axis: int, index: Index) -> LazyWeight:
        """Only the elements at `index` of an axis."""
        indices = whole(self.shape)
        return Cut(self, (*indices[:axis], index, *indices[axis + 1 :]))

    def rows(self, start: int, stop: int) -> LazyWeight:
        """Outputs [start, stop), as a rank of a column-parallel layer holds them."""
        return self.take(row_axis(self.shape), range(start, stop))

    def columns(self, start: int, stop: int) -> LazyWeight:
        """Inputs [start, stop) of a weight [..., N, K], as a rank of a row-parallel layer does."""
        return self.take(len(self.shape) - 1, range(start, stop))


def whole(shape: Sequence[int]) -> Indices:
    """The indices that take everything."""
    return tuple(range(n) for n in shape)


def row_axis(shape: Sequence[int]) -> int:
    """The axis of outputs: of a bias [N], of a weight [..., N, K]."""
    return max(len(shape) - 2, 0)


class FromFile(LazyWeight):
    """A tensor of the checkpoint; `array` gives all of it as a view of the file."""

    def __init__(
        self, path: str, name: str, shape: tuple[int, ...], array: Callable[[], np.ndarray]
    ) -> None:
        self.path, self.sources, self.shape, self.array = path, (name,), shape, array

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"tensor {self.sources[0]!r}"

    @property
    def dtype(self) -> np.dtype:
        """Of its elements."""
        return self.array().dtype

    def read(self, indices: Indices) -> np.ndarray:
        return pick(self.array(), indices)


class Held(LazyWeight):
    """A weight in memory, to be written."""

    def __init__(self, name: str, value: Weight | np.ndarray) -> None:
        self.path, self.sources, self.value = "this model", (name,), value
        self.shape = tuple(value.shape)

    def read(self, indices: Indices) -> np.ndarray:
        if not isinstance(self.value, np.ndarray | Tensor):
            raise ModelFileError(f"{self.sources[0]} is packed, and has no form in this checkpoint")
        array = self.value if isinstance(self.value, np.ndarray) else self.value.numpy()
        return pick(array, indices)


class Constant(LazyWeight):
    """One number in the shape and dtype of another weight."""

    def __init__(self, like: LazyWeight, value: float) -> None:
        self.path, self.sources, self.shape = like.path, (), like.shape
        self._like, self._value = like, value

    def read(self, indices: Indices) -> np.ndarray:
        return np.full_like(self._like.read(indices), self._value)


class Scaled(LazyWeight):
    """Another weight times a factor for each index of an axis, in float32."""

    def __init__(self, inner: LazyWeight, axis: int, factors: np.ndarray) -> None:
        self.path, self.sources, self.shape = inner.path, inner.sources, inner.shape
        self._inner, self._axis, self._factors = inner, axis, factors

    def read(self, indices: Indices) -> np.ndarray:
        factors = pick(self._factors, (indices[self._axis],))
        shape = [-1 if axis == self._axis else 1 for axis in range(len(indices))]
        return self._inner.read(indices).astype(np.float32) * factors.reshape(shape)


@dataclass(frozen=True)
class Expected(LazyWeight):
    """The place of a weight that is not there: a shape, and a kind, alone."""

    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    path: str = ""
    kind: str | None = None

    def read(self, indices: Indices) -> np.ndarray:
        raise ModelFileError(f"{self.path}: {' + '.join(self.sources)} is not in the checkpoint")


class Cut(LazyWeight):
    """Some rows and columns of another weight."""

    def __init__(self, inner: LazyWeight, indices: Indices) -> None:
        if isinstance(inner, Cut):
            inner, indices = inner.inner, composed(inner.indices, indices)
        self.inner, self.indices = inner, indices
        self.path, self.sources, self.kind = inner.path, inner.sources, inner.kind
        self.shape = tuple(len(index) for index in indices)

    def read(self, indices: Indices) -> np.ndarray:
        return self.inner.read(composed(self.indices, indices))


def whole_of(parts: Sequence[LazyWeight]) -> LazyWeight | None:
    """The weight whose rows, all of them, the parts are in this order; None if there is none."""
    cuts = [part for part in parts if isinstance(part, Cut)]
    if len(cuts) != len(parts) or len({id(cut.inner) for cut in cuts}) != 1:
        return None
    inner, axis, end = cuts[0].inner, row_axis(cuts[0].shape), 0
    for cut in cuts:
        rows, wanted = range(end, end + cut.shape[axis]), list(whole(inner.shape))
        wanted[axis] = rows
        if not all(
            isinstance(i, range) and i == w for i, w in zip(cut.indices, wanted, strict=True)
        ):
            return None
        end = rows.stop
    return inner if end == inner.shape[axis] else None


class Turned(LazyWeight):
    """The transpose: [..., K, N] of a weight [..., N, K]."""

    def __init__(self, inner: LazyWeight) -> None:
        self.path, self.sources, self._inner = inner.path, inner.sources, inner
        self.shape = _swapped(inner.shape)
        if inner.kind is not None:
            raise ModelFileError(
                f"{self.path}: {' + '.join(self.sources)} is {inner.kind}, which cannot be "
                "transposed; only float weights can"
            )

    def read(self, indices: Indices) -> np.ndarray:
        return self._inner.read(_swapped(indices)).swapaxes(-1, -2)


class Stack(LazyWeight):
    """Weights of one shape [N, K] as one [X, N, K]; read one at a time into their places."""

    def __init__(self, parts: Sequence[LazyWeight]) -> None:
        self._parts, self.path = parts, parts[0].path
        self.sources, self.kind = _sources(parts), _kind(parts)
        self.shape = (len(parts), *parts[0].shape)

    def read(self, indices: Indices) -> np.ndarray:
        first, *rest = (self._parts[int(i)] for i in indices[0])
        array = first.read(indices[1:])
        out = np.empty((1 + len(rest), *array.shape), array.dtype)
        out[0] = array
        for place, part in zip(out[1:], rest, strict=True):
            array = part.read(indices[1:])
            _check_alike(part, out, array)
            place[...] = array
        return out


class Item(LazyWeight):
    """Weight `index` of a stack."""

    def __init__(self, stack: LazyWeight, index: int) -> None:
        self._stack, self._index = stack, index
        self.path, self.sources, self.shape = stack.path, stack.sources, stack.shape[1:]
        self.kind = stack.kind

    def read(self, indices: Indices) -> np.ndarray:
        return self._stack.read((range(self._index, self._index + 1), *indices))[0]


class Joined(LazyWeight):
    """Weights as one along an axis, in `groups`: the first rows of each, the next rows of each, …

    One group puts them end to end. Made to be written: reading a part of it reads all rows.
    """

    def __init__(self, parts: Sequence[LazyWeight], axis: int, groups: int) -> None:
        self._parts, self._axis, self._groups = parts, axis, groups
        self.path, self.sources, shape = parts[0].path, _sources(parts), parts[0].shape
        self.kind = _kind(parts)
        rows = sum(part.shape[axis] for part in parts)
        self.shape = (*shape[:axis], rows, *shape[axis + 1 :])

    def read(self, indices: Indices) -> np.ndarray:
        axis, groups = self._axis, self._groups
        pieces = []
        for part in self._parts:
            array = part.read((*indices[:axis], range(part.shape[axis]), *indices[axis + 1 :]))
            shape = array.shape
            _check_alike(part, pieces[0] if pieces else array, array)
            pieces.append(array.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :]))
        joined = np.concatenate(pieces, axis + 1)
        shape = joined.shape
        flat = joined.reshape(*shape[:axis], -1, *shape[axis + 2 :])
        taken = list(whole(flat.shape))
        taken[axis] = indices[axis]
        return pick(flat, tuple(taken))


class Same(LazyWeight):
    """A weight that the checkpoint has twice, under names that must have the same numbers."""

    def __init__(self, kept: LazyWeight, copy: LazyWeight) -> None:
        self._kept, self._copy = kept, copy
        self.path, self.shape, self.sources = kept.path, kept.shape, kept.sources
        self.kind = kept.kind

    def read(self, indices: Indices) -> np.ndarray:
        kept, copy = self._kept.read(indices), self._copy.read(indices)
        if self._kept.kind != self._copy.kind or not _equal(kept, copy):
            raise ModelFileError(
                f"{self.path}: the config ties {self._copy.sources[0]!r} to {self.sources[0]!r}, "
                "but the checkpoint has different numbers for them; set tie_word_embeddings to "
                "false to use both"
            )
        return kept


def pick(array: np.ndarray, indices: Indices) -> np.ndarray:
    """The elements at the crossings of `indices`, one an axis: even steps as a view."""
    steps = (
        slice(i.start, i.stop, i.step) if isinstance(i, range) else slice(None) for i in indices
    )
    array = array[tuple(steps)]
    for axis, index in enumerate(indices):
        if not isinstance(index, range):
            array = array[(*[slice(None)] * axis, index)]  # `take` would read all of a cut array
    return array


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape have the same numbers, compared in bands of 16 MiB."""
    step = max(1, _BAND * max(len(a), 1) // max(a.nbytes, 1))
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step))


def composed(outer: Indices, inner: Indices) -> Indices:
    """What `inner` takes of what `outer` takes."""
    out: list[Index] = []
    for taken, index in zip(outer, inner, strict=True):
        if isinstance(index, range):
            out.append(taken[index.start : index.stop : index.step])
        elif isinstance(taken, range):
            out.append(taken.start + taken.step * index)
        else:
            out.append(taken[index])
    return tuple(out)


def _swapped(items: tuple) -> tuple:
    return (*items[:-2], items[-1], items[-2])


def _sources(parts: Iterable[LazyWeight]) -> tuple[str, ...]:
    """All names, each once."""
    return tuple(dict.fromkeys(name for part in parts for name in part.sources))


def _kind(parts: Sequence[LazyWeight]) -> str | None:
    """The one kind of all parts."""
    kinds = {part.kind for part in parts}
    if len(kinds) > 1:
        raise ModelFileError(
            f"{parts[0].path}: {' + '.join(_sources(parts))} are of different types "
            f"({', '.join(sorted(str(kind) for kind in kinds))}) and cannot be one weight"
        )
    return kinds.pop()


def _check_alike(part: LazyWeight, first: np.ndarray, array: np.ndarray) -> None:
    if array.dtype != first.dtype:
        raise ModelFileError(
            f"{part.path}: {' + '.join(part.sources)} is {array.dtype}, what it goes with "
            f"{first.dtype}; they cannot be one weight"
        )
