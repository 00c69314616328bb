"""Tensor maps: how Hopper's copy engine finds tiles of an array (`hopper.cuh`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from boostr.backends.cupy.runtime import driver

_TYPES = {"int8": 0, "uint8": 0, "float16": 6, "bfloat16": 9}  # CUtensorMapDataType
_SWIZZLES, _PROMOTION_256 = (
    {16: 0, 32: 1, 64: 2, 128: 3},
    3,
)  # CUtensorMapSwizzle, CUtensorMapL2promotion
_BYTES = 128


def tensor_map(array: Any, box: Sequence[int], swizzle: int = 128) -> bytes:
    """The map of an array [..., D] of 8 or 16 bits, read in boxes with a swizzle.

    Args:
        array: last axis contiguous; address and other strides multiples of 16 bytes (`mappable`).
        box: elements of each axis of `array`, outermost first; the last is `swizzle` bytes.
        swizzle: 128, 64, 32, or 16 for none.
    Returns:
        128 bytes, for a `const __grid_constant__ TensorMap` parameter. Elements out of bounds read
        as zero.
    """
    return _encoded(
        array.data.ptr, array.shape, array.strides, array.dtype.name, tuple(box), swizzle
    )


def mappable(array: Any) -> bool:
    """Whether the copy engine can read this 16-bit array as it lies."""
    *outer, inner = array.strides
    regular = all(s % 16 == 0 and s > 0 for s in outer)
    return inner == 2 and regular and array.data.ptr % 16 == 0 and array.size > 0


@lru_cache(maxsize=1024)
def _encoded(
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    box: tuple[int, ...],
    swizzle: int,
) -> bytes:
    rank = len(shape)
    room = ctypes.create_string_buffer(_BYTES + 64)
    aligned = -ctypes.addressof(room) % 64
    status = driver.library().cuTensorMapEncodeTiled(
        ctypes.byref(room, aligned),
        _TYPES[dtype],
        rank,
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * rank)(*reversed(shape)),
        (ctypes.c_uint64 * (rank - 1))(*reversed(strides[:-1])),
        (ctypes.c_uint32 * rank)(*reversed(box)),
        (ctypes.c_uint32 * rank)(*(1,) * rank),
        0,  # not interleaved
        _SWIZZLES[swizzle],
        _PROMOTION_256,
        0,  # zeros out of bounds
    )
    driver.check(status, f"tensor map of {shape}, strides {strides}, box {box}")
    return room.raw[aligned : aligned + _BYTES]
