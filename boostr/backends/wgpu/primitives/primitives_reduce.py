"""Reductions over any axes, argmax, running sums."""

from __future__ import annotations

import math

from boostr import dtypes
from boostr.backends.wgpu.primitives import layout
from boostr.backends.wgpu.primitives.launcher import Launcher
from boostr.backends.wgpu.runtime.array import GpuArray, Shape
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import PER_WORD, VALUE, name_of

WIDE = {"f32": dtypes.float32, "i32": dtypes.int32, "u32": dtypes.uint32}
_COLUMN_CHUNK = 256  # terms that one lane adds, which bounds the error
_ROW_CHUNK = 1 << 14  # elements of a row that one workgroup takes where rows are few
_FEW = 8192  # columns of partial results
_BUSY = 1024  # workgroups that keep a large device busy
_SCAN = 8  # elements of a thread
_UNROLL = 4  # vectors that a thread has under way


def threads_of(backend: Launcher) -> int:
    """Threads that meet at a barrier: few where a CPU plays them one by one."""
    return 64 if backend.caps.kind == "software" else 256


def _init(op: str, value: str) -> float | int:
    if op in ("sum", "argmax"):
        return 0
    if value == "f32":
        return -math.inf if op == "max" else math.inf
    if value == "u32":
        return 0 if op == "max" else 0xFFFFFFFF
    return -(2**31) if op == "max" else 2**31 - 1


def reduce_to(
    backend: Launcher, op: str, kept: Shape, cut: Shape, x: GpuArray, partial: bool = False
) -> GpuArray:
    """[O], 32-bit, from an array whose axes are `kept` + `cut`, each group of any strides.

    partial: it was just written by a kernel, and lies in the L2 cache.
    """
    axes = len(kept)
    outer, (outer_steps,) = layout.collapse(kept, x.strides[:axes])
    order = sorted(range(len(cut)), key=lambda i: -abs(x.strides[axes + i]))
    inner, (inner_steps,) = layout.collapse(
        tuple(cut[i] for i in order), tuple(x.strides[axes + i] for i in order)
    )
    if len(outer) > 2 or len(inner) > 2 or not layout.fits(x, backend.caps.binding_bytes):
        return _in_pieces(backend, op, kept, cut, x)
    columns = inner_steps[-1] != 1 and outer_steps[-1] == 1 and outer[-1] >= 16
    if partial and math.prod(outer) <= _FEW:
        columns = False  # few threads would walk down: many read across, which L2 serves
    columns = columns or math.prod(inner) < 8
    return _Reduction(backend, op, x, outer, outer_steps, inner, inner_steps, columns).run()


def _in_pieces(backend: Launcher, op: str, kept: Shape, cut: Shape, x: GpuArray) -> GpuArray:
    """What one launch cannot walk: dense first, and split where a kernel cannot see it all."""
    limit, lines, R = backend.caps.binding_bytes, math.prod(kept), math.prod(cut)
    if not x.contiguous:
        x = backend.copy(x)
    x = layout.dense_view(x, (lines, R))
    if layout.fits(x, limit):
        return reduce_to(backend, op, (lines,), (R,), x)
    axis = 0 if lines > 1 else 1
    half = x.shape[axis] // 2
    parts = [
        reduce_to(backend, op, p.shape[:1], p.shape[1:], p)
        for p in (
            layout.take_rows(x, 0, half, axis),
            layout.take_rows(x, half, x.shape[axis], axis),
        )
    ]
    if axis == 0:
        return backend.concat(parts, 0)
    both = backend.concat(parts, 0)
    return reduce_to(backend, op, (1,), (2,), layout.dense_view(both, (1, 2)))


class _Reduction:
    """One launch over [outer axes, inner axes], and what follows if it leaves partial results."""

    def __init__(
        self, backend: Launcher, op: str, x: GpuArray, outer: list[int],
        outer_steps: list[int], inner: list[int], inner_steps: list[int], columns: bool,
    ) -> None:  # fmt: skip
        self.backend, self.op, self.x, self.columns = backend, op, x, columns
        self.O, self.R = math.prod(outer), math.prod(inner)
        self.kind = name_of(x.dtype)
        self.threads = threads_of(backend)
        if self.O == 1:
            outer_steps = [0]
        self.outer, self.outer_steps = [1, *outer][-2:], [0, *outer_steps][-2:]
        self.inner, self.inner_steps = [1, *inner][-2:], [0, *inner_steps][-2:]
        self.E = self._width(outer, inner)

    def _width(self, outer: list[int], inner: list[int]) -> int:
        """Elements of the vectors that threads read; 1 where they would not be aligned."""
        width = 4 * PER_WORD[self.kind]
        length = outer[-1] if self.columns else inner[-1]
        steps = [*self.outer_steps, *self.inner_steps]
        if 1 in steps:
            steps.remove(1)
        alone = len(inner) == 1 or self.columns
        unit = self.outer_steps[-1] == 1 if self.columns else self.inner_steps[-1] == 1
        numbers = [self.backend.offset(self.x), length, *steps]
        whole = unit and alone and all(n % width == 0 for n in numbers)
        return width if whole else 1

    def run(self) -> GpuArray:
        chunk, chunks, lanes = self._split()
        value = VALUE[self.kind]
        shape = (chunks, self.O) if self.columns else (self.O, chunks)
        out = self.backend.empty(shape, WIDE[value])
        E = self.E
        outer_steps = [s // E for s in self.outer_steps] if E > 1 else self.outer_steps
        inner_steps = [s // E for s in self.inner_steps] if E > 1 else self.inner_steps
        kept1 = self.outer[1]
        if E > 1 and self.columns:
            kept1, outer_steps = kept1 // E, [outer_steps[0], 1]
        params = [
            self.O, self.R, chunk, chunks, _init(self.op, value),
            self.backend.offset(self.x) // E,
            kept1, *map(layout.word, outer_steps), self.inner[1], *map(layout.word, inner_steps),
        ]  # fmt: skip
        if self.columns:
            grid = -(-self.O // E * chunks // self.threads)
        else:
            grid = -(-self.O // (self.threads // lanes)) * chunks
        self.backend.launch(
            "reduce", "main", grid, [self.x], [out], params, OP=self.op, IN=self.kind, E=E,
            COLUMNS=self.columns, LANES=lanes, PARTIAL=False, UNROLL=_UNROLL, threads=self.threads,
        )  # fmt: skip
        if chunks == 1:
            return layout.flat(out)
        if self.columns:
            rows = out.view(shape=shape[::-1], strides=out.strides[::-1])
            return reduce_to(self.backend, self.op, (self.O,), (chunks,), rows, True)
        return reduce_to(self.backend, self.op, (self.O,), (chunks,), out, True)

    def _split(self) -> tuple[int, int, int]:
        """(length of a chunk, chunks, threads of a row)."""
        R = self.R
        if self.columns:
            lines = self.O // self.E
            wanted = max(1, R // _COLUMN_CHUNK, min(R // 32, _BUSY * self.threads // (4 * lines)))
            chunk = -(-R // wanted)
            return chunk, -(-R // chunk), 1
        share = -(-R // self.E)
        lanes = _lanes(share, self.threads)
        if self.O * lanes < 1 << 16 and share > 256:
            lanes = self.threads
        groups = -(-self.O // (self.threads // lanes))
        chunks = 1
        if groups < _BUSY:
            chunks = max(1, min(R // _ROW_CHUNK, _BUSY * 4 // groups))
        chunks = max(chunks, -(-R // (1 << 20)))
        chunk = math.ceil(math.ceil(R / chunks) / self.E) * self.E
        return chunk, -(-R // chunk), lanes


class Reductions(Launcher):
    """Primitives that shorten axes, and running sums."""

    def reduce(self, name: str, x: GpuArray, axes: tuple[int, ...], keepdims: bool) -> GpuArray:
        if not axes:
            return self.copy(x)
        kept = [i for i in range(x.ndim) if i not in axes]
        shape = tuple(
            1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes
        )
        if math.prod(shape) == 0:
            return self.empty(shape, x.dtype)
        if x.size == 0:
            return self.full(shape, 0, x.dtype)
        if x.size == math.prod(shape):
            return layout.dense_view(self.copy(x), shape)
        turned = self.permute(x, (*kept, *axes))
        cut = len(kept)
        made = reduce_to(self, name, turned.shape[:cut], turned.shape[cut:], turned)
        made = layout.dense_view(made, shape)
        return made if made.dtype == x.dtype else self.cast(made, x.dtype)

    def argmax(self, x: GpuArray, axis: int) -> GpuArray:
        turned, shape = _axis_last(self, x, axis)
        lines, n = math.prod(shape), x.shape[axis]
        if lines == 0:
            return self.empty(shape, dtypes.int32)
        threads = threads_of(self)
        keys, places, kind, length = self.dense(turned), None, name_of(x.dtype), n
        while True:
            groups = -(-lines // (threads // _lanes(length, threads)))
            chunks = max(1, min(length // 4096, _BUSY // groups), -(-length // (1 << 20)))
            chunk = -(-length // chunks)
            chunks = -(-length // chunk)
            best, index = (self.empty((lines, chunks), dtypes.uint32) for _ in range(2))
            arrays = [keys] if places is None else [keys, places]
            lanes = _lanes(chunk, threads)
            params = [
                lines,
                length,
                chunk,
                chunks,
                0,
                self.offset(keys),
                1,
                length,
                0,
                length,
                0,
                1,
            ]
            self.launch(
                "reduce", "main", -(-lines // (threads // lanes)) * chunks, arrays, [best, index],
                params, OP="argmax", IN=kind, E=1, COLUMNS=False, LANES=lanes,
                PARTIAL=places is not None, threads=threads,
            )  # fmt: skip
            if chunks == 1:
                return layout.dense_view(index, shape).view(dtype=dtypes.int32)
            keys, places, kind, length = best, index, "u32", chunks

    def cumsum(self, x: GpuArray, axis: int) -> GpuArray:
        if x.size == 0:
            return self.empty(x.shape, x.dtype)
        turned, _ = _axis_last(self, x, axis)
        dense = self.dense(turned)
        lines, n = x.size // x.shape[axis], x.shape[axis]
        made = scan(self, layout.dense_view(dense, (lines, n)))
        made = made if made.dtype == x.dtype else self.cast(made, x.dtype)
        lead = (*x.shape[:axis], *x.shape[axis + 1 :], n)
        made = layout.dense_view(self.dense(made), lead)
        order = [*range(axis), x.ndim - 1, *range(axis, x.ndim - 1)]
        return self.permute(made, order)


def _lanes(length: int, threads: int) -> int:
    return 8 if length <= 32 else 32 if length <= 1024 else threads


def _axis_last(backend: Launcher, x: GpuArray, axis: int) -> tuple[GpuArray, Shape]:
    """x with `axis` moved behind the others, whose shape comes second."""
    rest = [i for i in range(x.ndim) if i != axis]
    return backend.permute(x, (*rest, axis)), tuple(x.shape[i] for i in rest)


def scan(backend: Launcher, x: GpuArray, exclusive: bool = False) -> GpuArray:
    """Running sums of the rows of a dense [O, R]; of x's dtype or 32-bit."""
    lines, R = x.shape
    kind, threads = name_of(x.dtype), threads_of(backend)
    chunks = -(-R // (threads * _SCAN))
    whole = R % _SCAN == 0 and backend.offset(x) % _SCAN == 0
    wide = WIDE[VALUE[kind]]
    values = {"IN": kind, "VECTOR": whole, "threads": threads}
    params = [lines, R, chunks, backend.offset(x)]
    reads = [x]
    if chunks > 1:
        totals = backend.empty((lines, chunks), wide)
        backend.launch(
            "scan", "main", lines * chunks, reads, [totals], params, **values, OUT=VALUE[kind],
            TOTALS=True, STARTED=False, EXCLUSIVE=False,
        )  # fmt: skip
        reads.append(scan(backend, totals, exclusive=True))
    out = backend.empty((lines, R), x.dtype if whole else wide)
    backend.launch(
        "scan", "main", lines * chunks, reads, [out], params, **values, OUT=name_of(out.dtype),
        TOTALS=False, STARTED=chunks > 1, EXCLUSIVE=exclusive,
    )  # fmt: skip
    return out


def _variants() -> list[Variant]:
    made = []
    for op, kind, E in (
        ("sum", "f32", 4),
        ("max", "bf16", 8),
        ("min", "f16", 1),
        ("sum", "i32", 1),
        ("max", "u8", 16),
        ("min", "i8", 16),
        ("max", "u32", 4),
    ):
        made += [
            _reduce_variant(op, kind, E, columns, lanes, False)
            for columns, lanes in ((True, 1), (False, 8), (False, 32), (False, 256))
        ]
    for kind in ("f32", "bf16", "i8", "u32"):
        made.append(_reduce_variant("argmax", kind, 1, False, 32, False))
    made.append(_reduce_variant("argmax", "u32", 1, False, 256, True))
    for kind in ("f32", "bf16", "i32", "u8"):
        for vector in (False, True):
            out = kind if vector else VALUE[kind]
            made += [
                _scan_variant(kind, VALUE[kind], True, False, False, vector),
                _scan_variant(kind, out, False, False, False, vector),
                _scan_variant(kind, out, False, True, True, vector),
            ]
    return made


def _scan_variant(
    kind: str, out: str, totals: bool, started: bool, exclusive: bool, vector: bool
) -> Variant:
    values = {
        "IN": kind, "OUT": out, "TOTALS": totals, "STARTED": started, "EXCLUSIVE": exclusive,
        "VECTOR": vector, "threads": 256,
    }  # fmt: skip
    return Variant("scan", values)


def _reduce_variant(
    op: str, kind: str, E: int, columns: bool, lanes: int, partial: bool
) -> Variant:
    values = {
        "OP": op, "IN": kind, "E": E, "COLUMNS": columns, "LANES": lanes, "PARTIAL": partial,
        "UNROLL": 1 if op == "argmax" else _UNROLL, "threads": 256,
    }  # fmt: skip
    return Variant("reduce", values)


VARIANTS = _variants()
