"""Entries by number: take, take_along, scatter_add, and argsort, on which that rests."""

from __future__ import annotations

import math

from boostr import dtypes
from boostr.backends.wgpu.primitives import layout
from boostr.backends.wgpu.primitives.launcher import Launcher
from boostr.backends.wgpu.primitives.primitives_copy import whole_words
from boostr.backends.wgpu.primitives.primitives_reduce import threads_of
from boostr.backends.wgpu.runtime.array import GpuArray, Shape
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import PER_WORD, VALUE, name_of
from boostr.errors import BackendError

THREADS = 256
_SORTERS = 512  # threads that sort a block of four times as many pairs


class Indexing(Launcher):
    """Gathers, scatters and sorting."""

    def take(self, x: GpuArray, indices: GpuArray, axis: int) -> GpuArray:
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        out = self.empty(shape, x.dtype)
        if out.size:
            _take(self, out, x, self.dense(indices), axis)
        return out

    def take_along(self, x: GpuArray, indices: GpuArray, axis: int) -> GpuArray:
        out = self.empty(indices.shape, x.dtype)
        if out.size == 0:
            return out
        step = x.strides[axis]
        lines = (*x.strides[:axis], 0, *x.strides[axis + 1 :])
        sizes, steps = layout.collapse(indices.shape, lines, indices.strides)
        raw, rank = layout.raw_name(x), layout.rank_class(len(sizes))
        words = -(-out.size // PER_WORD[raw])
        params = [
            words, out.size, x.shape[axis], layout.word(step),
            *layout.walk(rank, sizes, list(zip((self.offset(x), self.offset(indices)), steps,
                                               strict=True))),
        ]  # fmt: skip
        self.launch(
            "index", "main", -(-words // THREADS), [x, indices], [out], params, ALONG=True,
            RAW=raw, width=1, INDEX=name_of(indices.dtype), rank=rank, WINDOW=False,
            threads=THREADS,
        )  # fmt: skip
        return out

    def scatter_add(self, shape: Shape, indices: GpuArray, values: GpuArray) -> GpuArray:
        out = self.empty(shape, values.dtype)
        if out.size == 0:
            return out
        if values.size == 0:
            return self.full(shape, 0, values.dtype)
        if indices.dtype.itemsize < 4:
            indices = self.cast(indices, dtypes.int32)  # which can hold any number of rows
        rows = self.binary("mod", indices, shape[0], indices.dtype)  # also from the end
        order = self.argsort(rows, 0)
        values = self.dense(values)
        starts = self.empty((shape[0] + 1,), dtypes.uint32)
        kind, index = name_of(values.dtype), name_of(rows.dtype)
        self.launch(
            "scatter", "main", shape[0] // THREADS + 1, [rows, order], [starts],
            [shape[0], rows.size], STARTS=True, KIND="u32", INDEX=index, VECTOR=False,
            threads=THREADS,
        )  # fmt: skip
        inner, start = out.size // shape[0], self.offset(values)
        vector = math.gcd(inner, start) % (4 * PER_WORD[kind]) == 0
        for first, part in layout.windows(out, self.caps.binding_bytes):
            words = -(-part.size // PER_WORD[kind])
            if self.offset(part) % (4 * PER_WORD[kind]):
                raise _too_large("scatter_add", out)
            params = [
                words, part.size, inner, first, self.offset(part) // PER_WORD[kind], start,
            ]  # fmt: skip
            threads = -(-words // (4 if vector else 1))
            self.launch(
                "scatter", "main", -(-threads // THREADS), [values, order, starts], [part], params,
                STARTS=False, KIND=kind, INDEX="", VECTOR=vector, threads=THREADS,
            )  # fmt: skip
        return out

    def argsort(self, x: GpuArray, axis: int) -> GpuArray:
        if x.size == 0:
            return self.empty(x.shape, dtypes.int32)
        rest = [i for i in range(x.ndim) if i != axis]
        turned = self.dense(self.permute(x, (*rest, axis)))
        n = x.shape[axis]
        places = _sorted_places(self, turned, x.size // n, n)
        lead = tuple(x.shape[i] for i in rest)
        steps = [0] * len(lead)
        stride = places.strides[0]
        for i in range(len(lead) - 1, -1, -1):
            steps[i], stride = stride, stride * lead[i]
        made = places.view(shape=(*lead, n), strides=(*steps, 1))
        order = [*range(axis), x.ndim - 1, *range(axis, x.ndim - 1)]
        return self.permute(made, order)


def _take(backend: Launcher, out: GpuArray, x: GpuArray, indices: GpuArray, axis: int) -> None:
    """out = x's entries; the axes before and behind `axis` are one each."""
    before, (step_b,) = layout.collapse(x.shape[:axis], x.strides[:axis])
    after, (step_q,) = layout.collapse(x.shape[axis + 1 :], x.strides[axis + 1 :])
    if len(before) > 1 or len(after) > 1:
        return _take(backend, out, backend.copy(x), indices, axis)
    if not layout.fits(x, backend.caps.binding_bytes):
        return _take_windows(backend, out, x, indices, axis)
    raw, n, inner = layout.raw_name(x), x.shape[axis], after[0]
    per, offset, step = PER_WORD[raw], backend.offset(x), x.strides[axis]
    numbers = (offset, step, step_b[0] if before[0] > 1 else 0, inner)
    width = whole_words(per, numbers) if step_q[0] == 1 else 0
    unit = width * per or 1
    if width == 0 and per == 1:
        width = 1
    params = [
        -(-out.size // (unit if width else per)), out.size, n, layout.word(step // unit),
        offset // unit, backend.offset(indices), inner // unit, indices.size,
        layout.word(step_b[0] // unit), layout.word(step_q[0]),
    ]  # fmt: skip
    backend.launch(
        "index", "main", -(-params[0] // THREADS), [x, indices], [out], params, ALONG=False,
        RAW="u32" if width else raw, width=width or 1, INDEX=name_of(indices.dtype), rank=0,
        WINDOW=False, threads=THREADS,
    )  # fmt: skip


def _take_windows(
    backend: Launcher, out: GpuArray, x: GpuArray, indices: GpuArray, axis: int
) -> None:
    """Rows of a table that a kernel cannot see at once: each launch makes those of its part."""
    x = backend.dense(x)
    raw, n = layout.raw_name(x), x.shape[axis]
    per, inner = PER_WORD[raw], math.prod(x.shape[axis + 1 :])
    row_bytes = inner * x.dtype.itemsize
    rows = (backend.caps.binding_bytes - 4096) // row_bytes
    if math.prod(x.shape[:axis]) > 1 or inner % per or x.offset % per or rows == 0:
        raise _too_large("take", x)
    if not layout.fits(out, backend.caps.binding_bytes):
        raise _too_large("take", out)
    unit = 4 * per if inner % (4 * per) == 0 and x.offset % (4 * per) == 0 else per
    for first in range(0, n, rows):
        part = layout.take_rows(x, first, min(first + rows, n), axis)
        params = [
            out.size // unit, out.size, n, inner // unit, backend.offset(part) // unit,
            backend.offset(indices), inner // unit, indices.size, 0, 1, first, part.shape[axis],
        ]  # fmt: skip
        backend.launch(
            "index", "main", -(-params[0] // THREADS), [part, indices], [out], params,
            ALONG=False, RAW="u32", width=unit // per, INDEX=name_of(indices.dtype), rank=0,
            WINDOW=True, threads=THREADS,
        )  # fmt: skip


def _too_large(op: str, array: GpuArray) -> BackendError:
    return BackendError(
        f"{op}[wgpu]: an array of shape {list(array.shape)} ({array.dtype}) is larger than what a "
        "kernel can see at once, and its rows do not begin at whole words"
    )


def _sorted_places(backend: Launcher, x: GpuArray, rows: int, n: int) -> GpuArray:
    """int32 [rows, n]: a view of rows of a power of two."""
    most = min(_SORTERS, backend.caps.workgroup_threads)
    if backend.caps.kind == "software":
        most = threads_of(backend)
    threads = min(most, max(16, 1 << max((n - 1).bit_length() - 2, 0)))
    block = 4 * threads
    padded = max(block, 1 << (n - 1).bit_length())
    keys = backend.empty((rows, padded), dtypes.uint32)
    places = backend.empty((rows, padded), dtypes.int32)
    blocks, pairs = padded // block, rows * padded // 2
    backend.launch(
        "sort", "main", rows * blocks, [x], [keys, places], [n, blocks, rows, backend.offset(x)],
        STAGE="local", IN=name_of(x.dtype), STEPS=0, threads=threads,
    )  # fmt: skip
    merge = 2 * block
    while merge <= padded:
        direction = merge if merge < padded else 0  # the last merge of each row ascends
        distance = merge // 2
        while distance >= block:
            steps = min(3, (distance // block).bit_length())
            backend.launch(
                "sort", "main", -(-(pairs >> (steps - 1)) // THREADS), [], [keys, places],
                [pairs, direction, distance], STAGE="global", IN="", STEPS=steps, threads=THREADS,
            )  # fmt: skip
            distance >>= steps
        backend.launch(
            "sort", "main", rows * blocks, [], [keys, places], [pairs, direction, 0],
            STAGE="finish", IN="", STEPS=0, threads=threads,
        )  # fmt: skip
        merge *= 2
    return places.view(shape=(rows, n), strides=(padded, 1))


def _gather(
    along: bool, raw: str, width: int, index: str, rank: int, window: bool = False
) -> Variant:
    values = {
        "ALONG": along, "RAW": raw, "width": width, "INDEX": index, "rank": rank,
        "WINDOW": window, "threads": THREADS,
    }  # fmt: skip
    return Variant("index", values)


def _scatter(starts: bool, kind: str, index: str, vector: bool) -> Variant:
    values = {
        "STARTS": starts, "KIND": kind, "INDEX": index, "VECTOR": vector, "threads": THREADS,
    }  # fmt: skip
    return Variant("scatter", values)


VARIANTS = [
    *(_gather(True, raw, 1, "i32", rank) for raw in ("u32", "u16", "u8") for rank in (2, 8)),
    *(_gather(False, raw, width, index, 0, window)
      for raw, width, window in (("u32", 4, False), ("u32", 1, False), ("u16", 1, False),
                                 ("u8", 1, False), ("u32", 4, True), ("u32", 1, True))
      for index in ("i32", "u32", "u8")),
    *(_scatter(False, kind, "", vector) for kind in VALUE if kind != "u16"
      for vector in (False, True)),
    *(_scatter(True, "u32", index, False) for index in ("i32", "u32")),
    *(Variant("sort", {"STAGE": stage, "IN": kind, "STEPS": 0, "threads": threads})
      for threads in (16, 256)
      for stage, kind in (("local", "f32"), ("local", "bf16"), ("local", "i32"), ("local", "u8"),
                          ("finish", ""))),
    *(Variant("sort", {"STAGE": "global", "IN": "", "STEPS": steps, "threads": THREADS})
      for steps in (1, 2, 3)),
]  # fmt: skip
