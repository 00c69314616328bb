"""How kernels address rows, and how many threads and registers they give one."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from boostr import dtypes

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

TYPES = {dtypes.float32: "float", dtypes.float16: "f16", dtypes.bfloat16: "bf16"}


def has_dense_rows(x: Any) -> bool:
    """Whether all axes but the first lie in order without gaps, so that one stride says all."""
    step = x.itemsize
    for n, stride in zip(x.shape[:0:-1], x.strides[:0:-1], strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return x.strides[0] % x.itemsize == 0 and x.strides[0] >= 0


def rows(backend: CupyBackend, x: Any) -> tuple[Any, int, int]:
    """(x or a dense copy, inner, stride): where the rows of x's last axis, of E elements, begin.

    Row r begins at element (r // inner) * stride + (r % inner) * E. So a slice of the columns of a
    fused product, such as q [T, H, D] out of [T, (H + 2K) D], is read where it lies.
    """
    if x.flags.c_contiguous or x.ndim < 2 or not x.size or not has_dense_rows(x):
        return backend.dense(x), 1, x.shape[-1] if x.ndim else 1
    return x, math.prod(x.shape[1:-1]), x.strides[0] // x.itemsize


def flat_rows(backend: CupyBackend, *arrays: Any) -> tuple[list[Any], int, int, list[int]]:
    """(arrays, rows, columns, strides) of arrays of one shape, as few long rows as they allow."""
    x = arrays[0]
    if all(a.flags.c_contiguous for a in arrays) or x.ndim < 2 or not x.size:
        return [backend.dense(a) for a in arrays], 1, x.size, [0] * len(arrays)
    columns = x.size // x.shape[0]
    found = [a if has_dense_rows(a) else backend.dense(a) for a in arrays]
    return found, x.shape[0], columns, [a.strides[0] // a.itemsize for a in found]


def run_length(lengths: tuple[int, ...], *arrays: Any) -> int:
    """Elements of 16 bytes of the widest array, if every start and length allows it, else 1."""
    widest = min(a.itemsize for a in arrays)
    run = 16 // widest
    if any(n % run for n in lengths):
        return 1
    for a in arrays:
        if a.data.ptr % min(16, run * a.itemsize):
            return 1
    return run


@cache
def plan(length: int, run: int, busy: bool, most: int = 4) -> dict[str, int]:
    """The macros VEC, ITEMS, LANES, ROWS and EXACT for rows of `length` elements in runs of `run`.

    busy: there are more rows than the GPU takes at once, so that a thread rather has several runs.
    most: ITEMS at most; longer rows are not kept in registers (ITEMS 0), nor are runs of 1.
    """
    runs = max(1, -(-length // run))
    if run == 1:
        lanes = min(256, max(32, power_of_two(-(-runs // 4))))
        return {"VEC": 1, "ITEMS": 0, "LANES": lanes, "ROWS": _rows(lanes), "EXACT": 0}
    best = None
    for lanes in (1024, 512, 256, 128, 64, 32, 16, 8, 4):
        items = -(-runs // lanes)
        if items > most:
            break
        rank = (runs / (lanes * items), -abs(items - (2 if busy else 1)))
        if best is None or rank > best[0]:
            best = rank, lanes, items
    if best is None:
        return {"VEC": run, "ITEMS": 0, "LANES": 512, "ROWS": 1, "EXACT": 0}
    _, lanes, items = best
    exact = int(length == lanes * items * run)
    return {"VEC": run, "ITEMS": items, "LANES": lanes, "ROWS": _rows(lanes), "EXACT": exact}


def _rows(lanes: int) -> int:
    """Rows of a block; the barriers of a row of several warps are those of the block."""
    return 128 // lanes if lanes <= 32 else 1


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
