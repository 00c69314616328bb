"""How kernels address rows, and how many threads and registers they give one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from boostr.backends.wgpu.runtime.wgsl import name_of

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_BUSY = 512  # rows that fill a large GPU: more of them, and a thread rather has several runs


def has_dense_rows(x: Any) -> bool:
    """Whether all axes but the first lie in order without gaps, so that one stride says all."""
    step = 1
    for n, stride in zip(x.shape[:0:-1], x.strides[:0:-1], strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return x.shape[0] == 1 or x.strides[0] >= 0


def row_stride(x: Any) -> int:
    """Elements from one entry of the first axis to the next, of an array with dense rows."""
    return int(x.strides[0]) if x.shape[0] > 1 else math.prod(x.shape[1:])


def rows(backend: WgpuBackend, x: Any) -> tuple[Any, int, int]:
    """(x or a dense copy, inner, stride): where the rows of x's last axis, of E elements, begin.

    Row r begins at element (r // inner) * stride + (r % inner) * E. So a slice of the columns of a
    fused product, such as q [T, H, D] out of [T, (H + 2K) D], is read where it lies.
    """
    if x.contiguous or x.ndim < 2 or not x.size or not has_dense_rows(x):
        return backend.dense(x), 1, x.shape[-1] if x.shape else 1
    return x, math.prod(x.shape[1:-1]), row_stride(x)


def flat_rows(backend: WgpuBackend, *arrays: Any) -> tuple[list[Any], int, int, list[int]]:
    """(arrays, rows, columns, strides) of arrays of one shape, as few long rows as they allow."""
    x = arrays[0]
    if all(a.contiguous for a in arrays) or len(x.shape) < 2 or not x.size:
        return [backend.dense(a) for a in arrays], 1, x.size, [0] * len(arrays)
    found = [a if has_dense_rows(a) else backend.dense(a) for a in arrays]
    return found, x.shape[0], x.size // x.shape[0], [row_stride(a) for a in found]


def run_length(backend: WgpuBackend, lengths: Sequence[int], *arrays: Any) -> int:
    """Elements that a thread moves at once: 8 of 16 bits or 4; 1 where rows do not come in such."""
    places = [backend.offset(a) for a in arrays]
    narrow = all(a.dtype.itemsize == 2 for a in arrays[:1])
    for run in (8, 4) if narrow else (4,):
        if not any(n % run for n in (*lengths, *places)):
            return run
    return 1


@cache
def plan(length: int, run: int, count: int, caps: Any, most: int = 4) -> dict[str, int]:
    """RUN, ITEMS, LANES, ROWS and EXACT for `count` rows of `length` elements in runs of `run`.

    most: ITEMS at most; longer rows are not kept in registers (ITEMS 0), nor are runs of 1.
    """
    widest = min(64 if caps.kind == "software" else 1024, caps.workgroup_threads)
    runs = max(1, -(-length // run))
    if run == 1:
        lanes = min(256, widest, max(32, power_of_two(-(-runs // 4))))
        return {"RUN": 1, "ITEMS": 0, "LANES": lanes, "ROWS": 1, "EXACT": 0}
    best = None
    for lanes in (1024, 512, 256, 128, 64, 32, 16, 8, 4):
        items = -(-runs // lanes)
        if lanes > widest:
            continue
        if items > most:
            break
        rank = (runs / (lanes * items), -abs(items - (2 if count > _BUSY else 1)))
        if best is None or rank > best[0]:
            best = rank, lanes, items
    if best is None:
        return {"RUN": run, "ITEMS": 0, "LANES": min(512, widest), "ROWS": 1, "EXACT": 0}
    _, lanes, items = best
    exact = int(length == lanes * items * run)
    share = 128 // lanes if lanes <= 32 else 1
    return {"RUN": run, "ITEMS": items, "LANES": lanes, "ROWS": share, "EXACT": exact}


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def parts(backend: WgpuBackend, *arrays: Any) -> Iterator[list[Any]]:
    """The arrays, alike in their first axis, in pieces of it that a kernel can see whole.

    One piece of all, unless an array is larger than a binding. None stays None.
    """
    known = [a for a in arrays if a is not None]
    count = known[0].shape[0] if known[0].shape else 1
    room = backend.caps.binding_bytes - 2 * backend.caps.offset_alignment
    largest = max((a.span[1] - a.span[0]) * a.dtype.itemsize for a in known)
    if largest <= room or count < 2:
        yield list(arrays)
        return
    step = max(8, int(room / largest * count) // 8 * 8)  # whole words of any row length
    for start in range(0, count, step):
        cut = slice(start, min(start + step, count))
        yield [None if a is None else first_rows(a, cut) for a in arrays]


def first_rows(a: Any, cut: slice) -> Any:
    """A view of a[cut]."""
    shape = (cut.stop - cut.start, *a.shape[1:])
    return a.view(shape=shape, offset=a.offset + cut.start * a.strides[0])


def type_of(x: Any) -> str:
    """The name in sources of an array's or a tensor's dtype."""
    return name_of(x.dtype)
