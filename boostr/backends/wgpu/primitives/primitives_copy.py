"""Primitives that make and move elements: full, arange, copies, concat, assign, put_rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.primitives import layout
from boostr.backends.wgpu.primitives.launcher import Launcher
from boostr.backends.wgpu.primitives.primitives_elementwise import cast_into, run
from boostr.backends.wgpu.runtime.array import GpuArray, Shape, contiguous_strides
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import PER_WORD, VALUE, name_of
from boostr.errors import BackendError

THREADS = 256
_TILED = 16  # rows and columns from which a transpose goes through shared memory


def fill(backend: Launcher, out: GpuArray, word: int) -> None:
    """Every word of a contiguous array that begins at a whole vector."""
    for (part,) in layout.pieces(backend.caps.binding_bytes, [out]):
        vectors = -(-part.nbytes // 16)
        start = backend.offset(part) * part.dtype.itemsize // 16
        backend.launch(
            "fill", "main", -(-vectors // THREADS), [], [part], [vectors, start, word],
            COUNT=False, OUT="u32", threads=THREADS,
        )  # fmt: skip


def copy_raw(backend: Launcher, out: GpuArray, x: GpuArray) -> None:
    """out[...] = x bit by bit; out is new and contiguous."""
    parts = _transposed(out, x)
    if parts is None or not (
        layout.fits(x, backend.caps.binding_bytes) and layout.fits(out, backend.caps.binding_bytes)
    ):
        raw = layout.raw_name(x)
        run(backend, "copy", "u32", raw, out, [(raw, x)])
        return
    rows, columns, step_a, step_y, batch, steps = parts
    raw = layout.raw_name(x)
    per, at = PER_WORD[raw], backend.offset(x)
    words = math.gcd(rows, step_a, at, *steps[0]) % per == 0
    tile = 32 * min(per, 2)
    params = [
        rows, columns, math.prod(batch), layout.word(step_a), step_y,
        *layout.walk(2, batch, [(at, steps[0]), (backend.offset(out), steps[1])]),
    ]  # fmt: skip
    down = -(-rows // (32 * per if words else 32))
    grid = down * -(-columns // tile) * math.prod(batch)
    backend.launch(
        "transpose", "main", grid, [x], [out], params, RAW=raw, WORDS=words, threads=THREADS
    )


def _transposed(out: GpuArray, x: GpuArray) -> tuple | None:
    """(rows, columns, x's step along columns, out's along rows, batch sizes and strides) where
    x's elements lie side by side along another axis than out's; None: no case for tiles."""
    sizes, (steps, dense) = layout.collapse(x.shape, x.strides, contiguous_strides(x.shape))
    rows = [k for k, s in enumerate(steps[:-1]) if s == 1 and sizes[k] >= _TILED]
    if len(sizes) > 4 or len(sizes) < 2 or steps[-1] in (0, 1) or not rows:
        return None
    k, per = rows[0], PER_WORD[layout.raw_name(x)]
    if sizes[-1] < _TILED or sizes[-1] % per:
        return None
    rest = [i for i in range(len(sizes) - 1) if i != k]
    batch = [sizes[i] for i in rest] or [1]
    strides = [[s[i] for i in rest] or [0] for s in (steps, dense)]
    return sizes[k], sizes[-1], steps[-1], dense[k], batch, strides


def assign_raw(
    backend: Launcher, target: GpuArray, source: GpuArray, index: GpuArray | None = None
) -> None:
    """target[...] = source, or target[index] = source, bit by bit; they share no memory."""
    if source.size == 0:
        return
    if index is None:
        for part, piece in layout.pieces(backend.caps.binding_bytes, [target, source]):
            sizes, steps = layout.collapse(part.shape, part.strides, piece.strides)
            for ends in _ends(backend, part, piece, sizes, steps):
                _assign(backend, *ends, None)
        return
    sizes, steps = layout.collapse(target.shape[1:], target.strides[1:], source.strides[1:])
    steps = [[0, *steps[0]], [source.strides[0], *steps[1]]]
    sizes = [source.shape[0], *sizes]
    for first, part in layout.windows(target, backend.caps.binding_bytes):
        _assign(backend, part, source, sizes, steps, index, first)


def _ends(
    backend: Launcher, target: GpuArray, source: GpuArray, sizes: list[int], steps: list[list[int]]
) -> Iterator[tuple[GpuArray, GpuArray, list[int], list[list[int]]]]:
    """The whole assignment; or that of whole vectors and what is left of long odd rows."""
    whole = sizes[-1] // 16 * 16
    outer = [*steps[0][:-1], *steps[1][:-1], backend.offset(target), backend.offset(source)]
    regular = steps[0][-1] == steps[1][-1] == 1 and math.gcd(*outer) % 16 == 0
    if not regular or whole < 256 or whole == sizes[-1]:
        yield target, source, sizes, steps
        return
    both = [
        a.view(shape=tuple(sizes), strides=tuple(s))
        for a, s in zip((target, source), steps, strict=True)
    ]
    for start, stop in ((0, whole), (whole, sizes[-1])):
        one, other = (layout.take_rows(a, start, stop, len(sizes) - 1) for a in both)
        yield one, other, [*sizes[:-1], stop - start], steps


def whole_words(per: int, numbers: Iterable[int]) -> int:
    """4 or 1 where offsets and lengths, in elements, are multiples of so many words; else 0."""
    count = math.gcd(*numbers)
    return next((w for w in (4, 1) if count % (w * per) == 0), 0)


def _assign(
    backend: Launcher, target: GpuArray, source: GpuArray, sizes: list[int],
    steps: list[list[int]], index: GpuArray | None, first: int = 0,
) -> None:  # fmt: skip
    offsets = [backend.offset(target), backend.offset(source)]
    row_step = target.strides[0] if index is not None else 0
    raw, per = layout.raw_name(target), PER_WORD[layout.raw_name(target)]
    numbers = [*offsets, row_step, *steps[0][:-1], *steps[1][:-1]]
    side_by_side = steps[0][-1] == steps[1][-1] == 1
    width = whole_words(per, (*numbers, sizes[-1])) if side_by_side else 0
    if per == 1:
        width = width or 1
    unit = width * per if side_by_side and width else 1
    if width:
        raw = "u32"
    sizes = [*sizes[:-1], sizes[-1] // unit]
    last = [1, 1] if unit > 1 else [s[-1] for s in steps]
    strides = [[*(n // unit for n in s[:-1]), end] for s, end in zip(steps, last, strict=True)]
    if len(sizes) > 8:
        raise BackendError(f"assign[wgpu]: {len(sizes)} axes that do not lie end to end, of 8")
    rank = layout.rank_class(len(sizes))
    size = math.prod(sizes)
    params, arrays = [size], [source]
    if index is not None:
        arrays.append(index)
        params += [
            size // sizes[0], target.shape[0], layout.word(row_step // unit), backend.offset(index),
            first,
        ]  # fmt: skip
    offsets = [o // unit for o in offsets]
    params += layout.walk(rank, sizes, list(zip(offsets, strides, strict=True)))
    backend.launch(
        "assign", "main", -(-size // THREADS), arrays, [target], params, RAW=raw,
        width=width or 1, rank=rank, INDEX=name_of(index.dtype) if index is not None else "",
        threads=THREADS,
    )  # fmt: skip


class Copying(Launcher):
    """New arrays, copies, and writing into views."""

    def full(self, shape: Shape, value: float | int | bool, dtype: np.dtype) -> GpuArray:
        out = self.empty(shape, dtype)
        if out.size:
            fill(self, out, layout.bits(np.array([value] * (4 // dtype.itemsize)), dtype))
        return out

    def arange(self, start: float, stop: float, step: float, dtype: np.dtype) -> GpuArray:
        n = max(0, math.ceil((stop - start) / step))
        out = self.empty((n,), dtype)
        kind = name_of(dtype)
        number = {"f32": float, "i32": int, "u32": lambda v: layout.word(int(v))}[VALUE[kind]]
        words = -(-n // PER_WORD[kind])
        self.launch(
            "fill", "main", -(-words // THREADS), [], [out], [words, number(start), number(step)],
            COUNT=True, OUT=kind, threads=THREADS,
        )  # fmt: skip
        return out

    def copy(self, x: GpuArray) -> GpuArray:
        held = {2: dtypes.float16}.get(x.dtype.itemsize, x.dtype)  # also views of uint16
        out = self.empty(x.shape, held).view(dtype=x.dtype)
        copy_raw(self, out, x)
        return out

    def concat(self, arrays: Sequence[GpuArray], axis: int) -> GpuArray:
        ends = np.cumsum([0, *(a.shape[axis] for a in arrays)]).tolist()
        first = arrays[0]
        shape = (*first.shape[:axis], ends[-1], *first.shape[axis + 1 :])
        out = self.empty(shape, first.dtype)
        for start, part in zip(ends, arrays, strict=False):
            assign_raw(self, layout.take_rows(out, start, start + part.shape[axis], axis), part)
        return out

    def assign(self, target: GpuArray, source: GpuArray) -> None:
        if target.size == 0:
            return
        apart = source.buffer is not target.buffer
        if source.dtype != target.dtype:
            start = target.offset * target.dtype.itemsize
            if apart and target.contiguous and start % 16 == 0 and target.nbytes % 16 == 0:
                return cast_into(self, target, source)
            source = self.cast(source, target.dtype)
        elif not apart:
            source = self.copy(source)
        assign_raw(self, target, source)

    def put_rows(self, target: GpuArray, indices: GpuArray, values: GpuArray) -> None:
        if values.size == 0 or target.size == 0:
            return
        if values.dtype != target.dtype:
            values = self.cast(values, target.dtype)
        elif values.buffer is target.buffer:
            values = self.copy(values)
        if indices.buffer is target.buffer or not indices.contiguous:
            indices = self.copy(indices)
        values = layout.broadcast(values, (indices.size, *target.shape[1:]))
        assign_raw(self, target, values, indices)


VARIANTS = [
    *(Variant("fill", {"COUNT": count, "OUT": kind, "threads": THREADS})
      for count, kind in ((False, "u32"), (True, "f32"), (True, "i32"), (True, "u32"),
                          (True, "bf16"), (True, "f16"), (True, "i8"), (True, "u8"))),
    *(Variant("transpose", {"RAW": raw, "WORDS": words, "threads": THREADS})
      for raw, words in (("u32", True), ("u16", True), ("u8", True), ("u16", False),
                         ("u8", False))),
    *(Variant("assign", {"RAW": raw, "width": width, "rank": rank, "INDEX": index,
                         "threads": THREADS})
      for raw, width in (("u32", 4), ("u32", 1), ("u16", 1), ("u8", 1))
      for rank, index in ((2, ""), (4, "i32"), (8, ""))),
]  # fmt: skip
