"""Elementwise primitives: formulas of `elementwise.wgsl` over broadcast operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import COMPARE
from boostr.backends.wgpu.primitives import layout
from boostr.backends.wgpu.primitives.launcher import Launcher
from boostr.backends.wgpu.runtime.array import GpuArray, Shape, contiguous_strides
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import NAMES, PER_WORD, VALUE, name_of
from boostr.errors import BackendError, DTypeError

THREADS, UNROLL = 256, 1  # of a workgroup; vectors of a thread where all operands are dense
Operand = tuple[str, Any]  # (name in WGSL of its elements, a GpuArray or a number)
_LARGE = 1 << 18  # elements
_REAL = {"div", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "sigmoid"}
_OF_FLAGS = {"add": "bitwise_or", "mul": "bitwise_and"}  # numpy's sums and products of bools


def run(
    backend: Launcher, op: str, work: str, kind: str, out: GpuArray, operands: Sequence[Operand]
) -> None:
    """out[...] = op(*operands), which broadcast to out's shape.

    Args:
        work: the type of the computation: f32, i32 or u32.   kind: of out's elements in WGSL.
        out: contiguous, from a whole vector of words on; the last vector is written as a whole.
    """
    if out.size == 0:
        return
    arrays = [layout.broadcast(x, out.shape) for _, x in operands if isinstance(x, GpuArray)]
    for part, *views in layout.pieces(backend.caps.binding_bytes, [out, *arrays]):
        left = iter(views)
        placed = [(d, next(left) if isinstance(x, GpuArray) else x) for d, x in operands]
        _launch(backend, op, work, kind, part, placed)


def _launch(
    backend: Launcher, op: str, work: str, kind: str, out: GpuArray, operands: Sequence[Operand]
) -> None:
    parts = tuple(
        (d, x.strides, backend.offset(x)) if isinstance(x, GpuArray) else (d, None, 0)
        for d, x in operands
    )
    at = backend.offset(out)
    plan = _plan(op, work, kind, out.shape, at, parts, (THREADS, UNROLL, _LARGE))
    if plan.copied:
        dense = [
            (d, backend.copy(x) if i in plan.copied else x) for i, (d, x) in enumerate(operands)
        ]
        return _launch(backend, op, work, kind, out, dense)
    params = list(plan.params)
    numbers = [x for _, x in operands if not isinstance(x, GpuArray)]
    for slot, x in zip(plan.slots, numbers, strict=True):
        params[slot] = layout.word(x) if work == "u32" else x
    arrays = [x for _, x in operands if isinstance(x, GpuArray)]
    backend.launch("elementwise", "main", plan.grid, arrays, [out], params, **plan.values)


@dataclass(frozen=True)
class _Plan:
    """A launch, but for its arrays and numbers.

    Attributes:
        copied: the operands that must be copied before, for another plan then.
        params: with room for numbers at `slots`.   values: of the source.
    """

    copied: tuple[int, ...] = ()
    grid: int = 0
    params: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=8192)
def _plan(
    op: str, work: str, kind: str, shape: Shape, at: int,
    parts: tuple[tuple[str, Shape | None, int], ...], tuning: tuple[int, int, int],
) -> _Plan:  # fmt: skip
    """For operands (elements' name, strides or None for a number, offset), broadcast to `shape`."""
    threads, unroll, large = tuning
    arrays = [i for i, (_, strides, _) in enumerate(parts) if strides is not None]
    sizes, (_, *steps) = layout.collapse(
        shape, contiguous_strides(shape), *(parts[i][1] or () for i in arrays)
    )
    size = math.prod(shape)
    deep = len(sizes) > (6 if len(arrays) > 2 else 8)
    if deep and op == "copy":
        raise BackendError(f"copy[wgpu]: {len(sizes)} axes that do not lie end to end, of 8")
    turned = tuple(
        i for i, step in zip(arrays, steps, strict=True)
        if deep or (op != "copy" and size >= large and _is_turned(step))
    )  # fmt: skip
    if turned:
        return _Plan(turned)
    width = 4 * min(PER_WORD[d] for d in (kind, *(parts[i][0] for i in arrays)))
    loads = _loads(width, at, sizes, steps, [parts[i][2] for i in arrays])
    if "each" in loads:
        width = PER_WORD[kind]
    if at % width:
        raise BackendError(f"{op}[wgpu]: the output begins inside of a vector of {width}")
    groups = -(-size // width)
    params, slots = [size, groups, at // width], []
    spec, walks = [], []
    placed = iter(zip(loads, steps, strict=True))
    for name, (dtype, strides, offset) in zip("ABC", parts, strict=False):
        load, step = ("scalar", []) if strides is None else next(placed)
        spec.append((name, dtype, load))
        if load == "scalar":
            slots.append(len(params))
        if load in ("scalar", "flat", "any"):
            number = {"flat": offset // width, "any": layout.word(sum(step[-1:]))}
            params.append(number.get(load, 0))
        if load not in ("scalar", "flat"):
            walks.append(_walked(load, width, offset, step))
    rank = layout.rank_class(len(sizes)) if walks else 0
    if walks:
        unroll = 1
        if "each" not in loads:
            sizes = [*sizes[:-1], -(-sizes[-1] // width)]
        params += layout.walk(rank, sizes, walks)
    values = {
        "OP": op, "WORK": work, "OUT": kind, "LOADS": tuple(spec), "E": width, "rank": rank,
        "UNROLL": unroll, "threads": threads,
    }  # fmt: skip
    grid = -(-groups // (threads * unroll))
    return _Plan((), grid, tuple(params), tuple(slots), values)


def _is_turned(step: list[int]) -> bool:
    """Whether an operand's neighbours lie along another axis than the output's, so that in large
    arrays a copy by tiles before saves more than it costs."""
    return step[-1] not in (0, 1) and 1 in step


def _loads(
    width: int, at: int, sizes: list[int], steps: list[list[int]], offsets: list[int]
) -> list[str]:
    """How operands are read (see elementwise.wgsl), where a thread makes `width` elements."""
    dense = list(contiguous_strides(tuple(sizes)))
    loads = []
    for offset, step in zip(offsets, steps, strict=True):
        aligned = step[-1] == 1 and all(s % width == 0 for s in (offset, *step[:-1]))
        if step == dense and offset % width == 0:
            loads.append("flat")
        elif step[-1] == 0:
            loads.append("one")
        else:
            loads.append("vector" if aligned else "any")
    # vectors must not cross a row's end, except behind the last element
    whole = sizes[-1] % width == 0 or (len(sizes) == 1 and {*loads} <= {"flat", "one"})
    alone = {*loads} <= {"flat"}
    return loads if at % width == 0 and (whole or alone) else ["each"] * len(loads)


def _walked(load: str, width: int, offset: int, step: list[int]) -> tuple[int, list[int]]:
    """(offset, strides) of an operand from one thread's elements to the next's."""
    if load == "vector":
        return offset // width, [*(s // width for s in step[:-1]), 1]
    return offset, step if load == "each" else [*step[:-1], step[-1] * width]


class Elementwise(Launcher):
    """Operations on every element by itself."""

    def unary(self, name: str, x: GpuArray) -> GpuArray:
        dtype = x.dtype
        if name in _REAL and not dtypes.is_float(dtype):
            dtype = dtypes.float32
        if name in ("floor", "round") and not dtypes.is_float(dtype):
            return self.copy(x)
        out = self.empty(x.shape, dtypes.bool_ if name == "logical_not" else dtype)
        kind = name_of(x.dtype)
        work = "f32" if dtypes.is_float(dtype) else VALUE[kind]
        run(self, name, work, name_of(out.dtype), out, [(kind, x)])
        return out

    def binary(self, name: str, a: Any, b: Any, dtype: np.dtype) -> GpuArray:
        if name in _REAL and not dtypes.is_float(dtype):
            dtype = dtypes.float32
        if dtype not in NAMES:
            raise DTypeError(f"{name}[wgpu]: the operands' common dtype {dtype} is not held there")
        kind = name_of(dtype)
        out = self.empty(_shape(a, b), dtypes.bool_ if name in COMPARE else dtype)
        op = _OF_FLAGS.get(name, name) if dtype == dtypes.bool_ else name
        operands = [_operand(v, dtype) for v in (a, b)]
        run(self, op, VALUE[kind], name_of(out.dtype), out, operands)
        return out

    def where(self, condition: GpuArray, a: Any, b: Any, dtype: np.dtype) -> GpuArray:
        if dtype not in NAMES:
            raise DTypeError(f"where[wgpu]: the operands' common dtype {dtype} is not held there")
        out = self.empty(_shape(condition, a, b), dtype)
        flags = ("u8", condition)
        if all(v.dtype == dtype for v in (a, b) if isinstance(v, GpuArray)):
            raw = layout.raw_name(out)  # bits are chosen: a nan stays as it is
            chosen = [
                (raw, v if isinstance(v, GpuArray) else layout.bits(v, dtype)) for v in (a, b)
            ]
            run(self, "where", "u32", raw, out, [flags, *chosen])
        else:
            operands = [_operand(v, dtype) for v in (a, b)]
            kind = name_of(dtype)
            run(self, "where", VALUE[kind], kind, out, [flags, *operands])
        return out

    def cast(self, x: GpuArray, dtype: np.dtype) -> GpuArray:
        if dtype == x.dtype:
            return self.copy(x)
        if dtype not in NAMES:
            raise DTypeError(f"cast[wgpu]: {self.device} holds no {dtype}")
        out = self.empty(x.shape, dtype)
        cast_into(self, out, x)
        return out


def cast_into(backend: Launcher, out: GpuArray, x: GpuArray) -> None:
    """out[...] = x in out's dtype; out as for `run`."""
    kind = name_of(x.dtype)
    op = "nonzero" if out.dtype == dtypes.bool_ else "cast"
    run(backend, op, VALUE[kind], name_of(out.dtype), out, [(kind, x)])


def _shape(*operands: Any) -> tuple[int, ...]:
    shapes = {x.shape for x in operands if isinstance(x, GpuArray)}
    return shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)


def _operand(x: Any, dtype: np.dtype) -> Operand:
    """An array as it is; a number rounded to `dtype`, as numpy does."""
    if isinstance(x, GpuArray):
        return name_of(x.dtype), x
    value = dtype.type(x)
    return name_of(dtype), float(value) if dtypes.is_float(dtype) else int(value)


def _variant(op: str, work: str, out: str, loads: tuple, width: int, rank: int) -> Variant:
    values = {
        "OP": op, "WORK": work, "OUT": out, "LOADS": loads, "E": width, "rank": rank,
        "UNROLL": 1 if rank else UNROLL, "threads": THREADS,
    }  # fmt: skip
    return Variant("elementwise", values)


VARIANTS = [
    *(_variant(op, "f32", "f32", (("A", "f32", "flat"),), 4, 0)
      for op in ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf",
                 "sigmoid", "floor", "round")),
    *(_variant(op, "f32", "bf16", (("A", "bf16", "flat"), ("B", "f16", "flat")), 8, 0)
      for op in ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "floor_div", "mod")),
    *(_variant(op, work, work, (("A", work, "flat"), ("B", work, "scalar")), 4, 0)
      for work in ("i32", "u32")
      for op in ("pow", "maximum", "floor_div", "mod", "bitwise_and", "left_shift",
                 "right_shift")),
    *(_variant(op, "f32", "u8", (("A", "f32", "flat"), ("B", "f32", "one")), 4, 2)
      for op in COMPARE),
    *(_variant("cast", VALUE[a], b, (("A", a, "flat"),), 4 * min(PER_WORD[a], PER_WORD[b]), 0)
      for a, b in (("f32", "i32"), ("f32", "u32"), ("bf16", "f16"), ("i8", "f32"), ("u8", "i8"),
                   ("f16", "i8"), ("i32", "f16"))),
    *(_variant("copy", "u32", raw, (("A", raw, load),), width, rank)
      for raw, width in (("u32", 4), ("u16", 8), ("u8", 16))
      for load, rank in (("flat", 0), ("vector", 2))),
    _variant("nonzero", "f32", "u8", (("A", "bf16", "vector"),), 8, 4),
    _variant("logical_not", "u32", "u8", (("A", "u8", "each"),), 4, 8),
    _variant("add", "f32", "f32", (("A", "f32", "each"), ("B", "f32", "each")), 1, 8),
    _variant("add", "f32", "f16", (("A", "f16", "any"), ("B", "f16", "vector")), 8, 2),
    _variant("add", "i32", "i8", (("A", "i8", "vector"), ("B", "i8", "any")), 16, 4),
    *(_variant("where", "u32", raw, (("A", "u8", "one"), ("B", raw, "scalar"), ("C", raw, "any")),
               width, 2) for raw, width in (("u32", 4), ("u16", 8), ("u8", 16))),
    _variant("where", "u32", "u16", tuple((x, "u16", "each") for x in "ABC"), 2, 6),
]  # fmt: skip
