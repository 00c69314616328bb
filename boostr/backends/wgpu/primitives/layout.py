"""How kernels walk strided arrays: axes that lie without gaps become one, ranks come in classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from boostr.backends.wgpu.runtime.array import GpuArray, Shape, contiguous_strides

RAW = {4: "u32", 2: "u16", 1: "u8"}  # item size -> name in WGSL of elements that are only moved
RANKS = (2, 4, 6, 8)


def raw_name(array: GpuArray) -> str:
    """The name in WGSL of an array's elements as bits."""
    return RAW[array.dtype.itemsize]


def word(value: int) -> int:
    """An integer modulo 2**32, as parameters of type u32 take negative strides."""
    return value & 0xFFFFFFFF


def broadcast(array: GpuArray, shape: Shape) -> GpuArray:
    """`array` repeated to `shape`, which numpy's rules allow."""
    if array.shape == shape:
        return array
    missing = len(shape) - array.ndim
    strides = (0,) * missing + tuple(
        0 if n == 1 else stride for n, stride in zip(array.shape, array.strides, strict=True)
    )
    return array.view(shape=tuple(shape), strides=strides)


def collapse(shape: Shape, *strides: Shape) -> tuple[list[int], list[list[int]]]:
    """(sizes, strides of each operand) of as few axes as all operands allow, at least one."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        new = [s[axis] for s in strides]
        if sizes and all(old[-1] == n * step for old, step in zip(steps, new, strict=True)):
            sizes[-1] *= n
            for old, step in zip(steps, new, strict=True):
                old[-1] = step
            continue
        sizes.append(n)
        for old, step in zip(steps, new, strict=True):
            old.append(step)
    if not sizes:
        return [1], [[1] for _ in strides]
    return sizes, steps


def rank_class(rank: int) -> int:
    """The number of axes that a kernel for `rank` axes is made for."""
    return next(r for r in RANKS if r >= rank)


def walk(rank: int, sizes: Sequence[int], operands: Sequence[tuple[int, Sequence[int]]]):
    """The parameters that `walk.wgsl` declares; operands are (offset, strides)."""
    missing = rank - len(sizes)
    params = [1] * missing + list(sizes)
    params = params[1:]
    for offset, strides in operands:
        params.append(word(offset))
        params += [0] * missing + [word(s) for s in strides]
    return params


def take_rows(array: GpuArray, start: int, stop: int, axis: int = 0) -> GpuArray:
    """Part of an array along one axis."""
    shape = (*array.shape[:axis], stop - start, *array.shape[axis + 1 :])
    return array.view(shape=shape, offset=array.offset + start * array.strides[axis])


def fits(array: GpuArray, limit: int) -> bool:
    """Whether a kernel can see all of an array at once."""
    if array.buffer.block.size <= limit:
        return True
    low, high = array.span
    return (high - low) * array.dtype.itemsize <= limit - 256


def pieces(limit: int, arrays: Sequence[GpuArray]) -> Iterator[tuple[GpuArray, ...]]:
    """Arrays of one shape in parts that fit into bindings of `limit` bytes."""
    if all(fits(a, limit) for a in arrays):
        yield tuple(arrays)
        return
    if arrays[0].ndim != 1 and all(a.contiguous for a in arrays):
        arrays = [flat(a) for a in arrays]
    axis = next(i for i, n in enumerate(arrays[0].shape) if n > 1)
    n = arrays[0].shape[axis]
    half = n // 2 if n < 128 else n // 2 // 64 * 64  # whole vectors where there are many rows
    yield from pieces(limit, [take_rows(a, 0, half, axis) for a in arrays])
    yield from pieces(limit, [take_rows(a, half, n, axis) for a in arrays])


def windows(array: GpuArray, limit: int) -> Iterator[tuple[int, GpuArray]]:
    """(first row, rows) of parts that fit into bindings of `limit` bytes."""
    pieces = 1
    while pieces < array.shape[0] and not fits(
        take_rows(array, 0, -(-array.shape[0] // pieces)), limit
    ):
        pieces *= 2
    step = -(-array.shape[0] // pieces)
    for first in range(0, array.shape[0], step):
        yield first, take_rows(array, first, min(first + step, array.shape[0]))


def flat(array: GpuArray) -> GpuArray:
    """A contiguous array as one axis."""
    return array.view(shape=(array.size,), strides=(1,))


def dense_view(array: GpuArray, shape: Shape) -> GpuArray:
    """A contiguous array in another shape."""
    return array.view(shape=tuple(shape), strides=contiguous_strides(tuple(shape)))


def reshaped(array: GpuArray, shape: Shape) -> GpuArray | None:
    """A view of another shape, or None where the strides do not allow one."""
    if array.contiguous:
        return dense_view(array, shape)
    sizes, (steps,) = collapse(array.shape, array.strides)
    strides: list[int] = []
    left = list(zip(sizes, steps, strict=True))
    inner, stride = left.pop()
    for n in reversed(shape):
        if n == 1:
            strides.append(stride)
            continue
        if inner == 1 and left:
            inner, stride = left.pop()
        if inner % n:
            return None
        strides.append(stride)
        inner, stride = inner // n, stride * n
    return array.view(shape=tuple(shape), strides=tuple(reversed(strides)))


def bits(value: Any, dtype: np.dtype) -> int:
    """The bits of a number, or of a few, in a dtype."""
    return int.from_bytes(np.array(value).astype(dtype).tobytes(), "little")
