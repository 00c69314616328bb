"""All primitives over an array namespace `xp`: numpy's and cupy's functions have the same names.

Inside a capture every call that makes or writes data goes through `_run`, which appends it to the
program; views share memory and need no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Array, Backend, Shape

_BINARY_NAMES = {
    "sub": "subtract", "mul": "multiply", "div": "divide", "pow": "power",
    "floor_div": "floor_divide", "eq": "equal", "ne": "not_equal", "lt": "less",
    "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip
_UNARY_NAMES = {"neg": "negative", "round": "rint"}


class ArrayBackend(Backend):
    """Primitives for a backend whose arrays follow numpy's interface."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def _run(self, fn: Callable[..., Array], *args: Any) -> Array:
        """Call `fn`; a capturing subclass also records the call and its result."""
        return fn(*args)

    def shape(self, x: Array) -> Shape:
        return x.shape

    def dtype(self, x: Array) -> np.dtype:
        return x.dtype

    def is_contiguous(self, x: Array) -> bool:
        return x.flags.c_contiguous

    def full(self, shape: Shape, value: float | int | bool, dtype: np.dtype) -> Array:
        # recorded in a capture, as what is made here may be written to in place later
        if value == 0:  # zero pages stay unmapped until they are written
            return self._run(self.xp.zeros, shape, dtype)
        return self._run(self.xp.full, shape, value, dtype)

    def arange(self, start: float, stop: float, step: float, dtype: np.dtype) -> Array:
        return self._run(self.xp.arange, start, stop, step, dtype)

    # -- views -----------------------------------------------------------------------------------
    def reshape(self, x: Array, shape: Shape) -> Array:
        if x.flags.c_contiguous or _is_view(x.shape, x.strides, shape):
            return x.reshape(shape)
        return self._run(_reshape, x, shape)

    def permute(self, x: Array, axes: Sequence[int]) -> Array:
        return x.transpose(axes)

    def broadcast_to(self, x: Array, shape: Shape) -> Array:
        return self.xp.broadcast_to(x, shape)

    def slice(self, x: Array, slices: tuple[slice, ...]) -> Array:
        return x[slices]

    def bitcast(self, x: Array, dtype: np.dtype) -> Array:
        if x.strides[-1] != x.itemsize:
            x = self.copy(x)
        return x.view(dtype)

    # -- elementwise -----------------------------------------------------------------------------
    def unary(self, name: str, x: Array) -> Array:
        own = getattr(self, "_" + name, None)
        return self._run(_quiet(own or getattr(self.xp, _UNARY_NAMES.get(name, name))), x)

    def _rsqrt(self, x: Array) -> Array:
        return (1 / self.xp.sqrt(x)).astype(x.dtype, copy=False)

    def _sigmoid(self, x: Array) -> Array:
        half = x.dtype.type(0.5)
        return half * self.xp.tanh(half * x) + half  # no overflow at either end

    def _erf(self, x: Array) -> Array:
        raise NotImplementedError

    def binary(self, name: str, a: Array, b: Array | float | int, dtype: np.dtype) -> Array:
        fn = getattr(self.xp, _BINARY_NAMES.get(name, name))
        return self._run(_quiet(fn), self._as(a, dtype), self._as(b, dtype))

    def _as(self, x: Any, dtype: np.dtype) -> Array:
        if not hasattr(x, "dtype"):
            return dtype.type(x)
        return x if x.dtype == dtype else self.cast(x, dtype)

    def where(self, condition: Array, a: Array, b: Array, dtype: np.dtype) -> Array:
        return self._run(self.xp.where, condition, self._as(a, dtype), self._as(b, dtype))

    def cast(self, x: Array, dtype: np.dtype) -> Array:
        return self._run(_quiet(_cast), x, dtype)

    def copy(self, x: Array) -> Array:
        return self._run(_copy, x)

    # -- reductions, products, indexing ----------------------------------------------------------
    def reduce(self, name: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        return self._run(_quiet(self._reduce), name, x, axes, keepdims)

    def _reduce(self, name: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        if name == "sum":
            wide = _accumulator(x.dtype)
            return self.xp.asarray(x.sum(axis=axes, dtype=wide, keepdims=keepdims)).astype(x.dtype)
        return self.xp.asarray(getattr(x, name)(axis=axes, keepdims=keepdims))

    def argmax(self, x: Array, axis: int) -> Array:
        return self._run(self._argmax, x, axis)

    def _argmax(self, x: Array, axis: int) -> Array:
        return self.xp.asarray(x.argmax(axis)).astype(dtypes.int32)

    def argsort(self, x: Array, axis: int) -> Array:
        return self._run(self._argsort, x, axis)

    def _argsort(self, x: Array, axis: int) -> Array:
        return self.xp.argsort(x, axis=axis, kind="stable").astype(dtypes.int32)

    def cumsum(self, x: Array, axis: int) -> Array:
        return self._run(_quiet(_cumsum), x, axis)

    def matmul(self, a: Array, b: Array) -> Array:
        return self._run(_quiet(self._matmul), a, b)

    def _matmul(self, a: Array, b: Array) -> Array:
        dtype = a.dtype
        if dtype in dtypes.LOW_PRECISION:
            return self.xp.matmul(a.astype(np.float32), b.astype(np.float32)).astype(dtype)
        return self.xp.matmul(a, b)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        return self._run(self.xp.take, x, indices, axis)

    def take_along(self, x: Array, indices: Array, axis: int) -> Array:
        return self._run(self._take_along, x, indices, axis)

    def _take_along(self, x: Array, indices: Array, axis: int) -> Array:
        return self.xp.take_along_axis(x, indices.astype(np.int64), axis)

    def scatter_add(self, shape: Shape, indices: Array, values: Array) -> Array:
        return self._run(_quiet(self._scatter_add), shape, indices, values)

    def _scatter_add(self, shape: Shape, indices: Array, values: Array) -> Array:
        out = self.xp.zeros(shape, _accumulator(values.dtype))
        self.xp.add.at(out, indices, values.astype(out.dtype, copy=False))
        return out.astype(values.dtype, copy=False)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return self._run(self._concat, axis, *arrays)

    def _concat(self, axis: int, *arrays: Array) -> Array:
        return self.xp.concatenate(arrays, axis)

    # -- in place --------------------------------------------------------------------------------
    def assign(self, target: Array, source: Array) -> None:
        self._run(_quiet(_assign), target, source)

    def put_rows(self, target: Array, indices: Array, values: Array) -> None:
        self._run(_quiet(_put_rows), target, indices, values)


def _accumulator(dtype: np.dtype) -> np.dtype:
    return dtypes.float32 if dtype in dtypes.LOW_PRECISION else dtype


def _cumsum(x: Array, axis: int) -> Array:
    # a running sum cannot be added in pairs, so that its error grows with its length
    wide = np.float64 if dtypes.is_float(x.dtype) else x.dtype
    return x.cumsum(axis=axis, dtype=wide).astype(x.dtype, copy=False)


@cache
def _quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, in which 0/0 and overflow follow IEEE silently, as on a GPU."""

    @wraps(fn, assigned=("__name__",), updated=())
    def run(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return fn(*args)

    return run


def _cast(x: Array, dtype: np.dtype) -> Array:
    return x.astype(dtype)


def _copy(x: Array) -> Array:
    return x.copy(order="C")


def _reshape(x: Array, shape: Shape) -> Array:
    return x.reshape(shape)


def _is_view(shape: Shape, strides: Shape, wanted: Shape) -> bool:
    """Whether an array of these strides can be seen in the shape `wanted` without a copy."""
    runs: list[tuple[int, int]] = []  # (elements, stride) of axes that lie without gaps
    for n, stride in zip(shape, strides, strict=True):
        if runs and runs[-1][1] == n * stride:
            runs[-1] = (runs[-1][0] * n, stride)
        elif n != 1:
            runs.append((n, stride))
    rest = [n for n in reversed(wanted) if n != 1]
    for elements, _ in runs:
        while elements > 1 and rest and elements % rest[-1] == 0:
            elements //= rest.pop()
        if elements > 1:
            return False
    return not rest


def _assign(target: Array, source: Array) -> None:
    target[...] = source.astype(target.dtype, copy=False)


def _put_rows(target: Array, indices: Array, values: Array) -> None:
    keep = indices >= 0
    target[indices[keep]] = values[keep].astype(target.dtype, copy=False)
