"""GpuArray: a window of a GPU buffer seen through a shape and strides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from boostr.backends.wgpu.runtime.buffers import Buffer

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GpuArray:
    """Elements `offset + sum(index * stride)` of a buffer.

    Attributes:
        buffer: the memory, shared by all views of it; given back when the last of them dies.
        strides: in elements; 0 along a repeated axis, negative along a reversed one.
        offset: of the first element from the buffer's start, in elements.
    """

    buffer: Buffer
    shape: Shape
    dtype: np.dtype
    strides: Shape
    offset: int = 0

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @cached_property
    def contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        if self.size == 0:
            return True
        wanted = contiguous_strides(self.shape)
        pairs = zip(self.shape, self.strides, wanted, strict=True)
        return all(n == 1 or stride == other for n, stride, other in pairs)

    @cached_property
    def span(self) -> tuple[int, int]:
        """First element that is touched, and the one behind the last, from the buffer's start."""
        if self.size == 0:
            return self.offset, self.offset
        reach = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        low = self.offset + sum(r for r in reach if r < 0)
        return low, self.offset + sum(r for r in reach if r > 0) + 1

    def view(self, **changes: Any) -> GpuArray:
        """The same buffer with another shape, strides, offset or dtype."""
        return replace(self, **changes)

    def __len__(self) -> int:
        return self.shape[0]


def contiguous_strides(shape: Shape) -> Shape:
    """Strides in elements of row-major order."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)
