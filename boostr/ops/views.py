"""Views and copies as ops: they share memory with their input where the backend's strides allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op, common_backend
from boostr.errors import ShapeError
from boostr.tensor import Tensor, full


def _wrap(data: Any, like: Tensor) -> Tensor:
    return Tensor.wrap(data, like.backend)


_reshape_op = Op(
    "reshape",
    lambda x, shape: _wrap(x.backend.reshape(x.data, shape), x).seen_through(x),
    vjp=lambda g, y, x, shape: (reshape(g, x.shape), None),
    saves=(),
    primitive=True,
)
_permute_op = Op(
    "permute",
    lambda x, axes: _wrap(x.backend.permute(x.data, axes), x).seen_through(x),
    vjp=lambda g, y, x, axes: (permute(g, tuple(int(i) for i in np.argsort(axes))), None),
    saves=(),
    primitive=True,
)
_broadcast_op = Op(
    "broadcast_to",
    lambda x, shape: _wrap(x.backend.broadcast_to(x.data, shape), x).seen_through(x),
    vjp=lambda g, y, x, shape: (unbroadcast(g, x), None),
    saves=(),
    primitive=True,
)
_copy_op = Op(
    "contiguous",
    lambda x: _wrap(x.backend.copy(x.data), x),
    vjp=lambda g, y, x: (g,),
    saves=(),
    primitive=True,
)


def checked_axis(op: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front; it must be one of `ndim`."""
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{op}: axis {axis} of a tensor with {ndim} axes")
    return axis % ndim


def unbroadcast(g: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient over the axes along which `like` had been broadcast."""
    extra = g.ndim - like.ndim
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(like.shape) if n == 1 and g.shape[i + extra] != 1
    )
    if axes:
        g = g.sum(axes, keepdims=True)
    if g.shape != like.shape:
        g = reshape(g, like.shape)
    return g.to(like.dtype)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in another shape; one entry may be -1."""
    known = math.prod(n for n in shape if n != -1)
    full = tuple(x.size // max(known, 1) if n == -1 else n for n in shape)
    if math.prod(full) != x.size or sum(n == -1 for n in shape) > 1:
        raise ShapeError(f"reshape: {list(x.shape)} ({x.size} elements) into {list(shape)}")
    return _reshape_op(x, full)


def permute(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Axes in another order, each named once."""
    order = tuple(a + x.ndim if a < 0 else a for a in axes)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"permute: axes {tuple(axes)} do not name each of {x.ndim} axes once")
    return _permute_op(x, order)


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat along axes of length 1, as numpy does."""
    try:
        fits = np.broadcast_shapes(x.shape, tuple(shape)) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"broadcast_to: {list(x.shape)} does not broadcast to {list(shape)}")
    return _broadcast_op(x, tuple(shape))


def contiguous(x: Tensor) -> Tensor:
    """x itself if its elements lie in row-major order, else a copy that does."""
    return x if x.backend.is_contiguous(x.data) else _copy_op(x)


def sliced(x: Tensor, slices: tuple[slice, ...]) -> Tensor:
    """x with one slice, of steps of either sign, for every axis."""
    return _slice_op(x, slices)


def _slice_vjp(g: Tensor, y: Tensor, x: Tensor, slices: tuple[slice, ...]) -> tuple:
    spread = full(x.shape, 0, x.dtype, x.backend)
    g.backend.assign(g.backend.slice(spread.data, slices), g.to(x.dtype).data)
    return spread, None


_slice_op = Op(
    "slice",
    lambda x, slices: _wrap(x.backend.slice(x.data, slices), x).seen_through(x),
    vjp=_slice_vjp,
    saves=(),
    primitive=True,
)


_concat_op = Op(
    "concat",
    lambda parts, axis: _wrap(parts[0].backend.concat([p.data for p in parts], axis), parts[0]),
    vjp=lambda g, y, parts, axis: (split(g, [p.shape[axis] for p in parts], axis), None),
    saves=(),
    primitive=True,
)


def concat(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors end to end along `axis`; their other axes agree."""
    if not parts:
        raise ShapeError("concat: expected at least one tensor")
    axis = checked_axis("concat", axis, parts[0].ndim)
    rest = {tuple(n for i, n in enumerate(p.shape) if i != axis) for p in parts}
    if len(rest) != 1 or len({p.dtype for p in parts}) != 1:
        got = ", ".join(f"{p.dtype}{list(p.shape)}" for p in parts)
        raise ShapeError(f"concat: shapes must agree except along axis {axis}, got {got}")
    common_backend("concat", list(parts))
    return _concat_op(list(parts), axis)


def split(x: Tensor, sizes: Sequence[int], axis: int = 0) -> list[Tensor]:
    """Views of `x` of the given lengths along `axis`, which they must fill."""
    axis = checked_axis("split", axis, x.ndim)
    if sum(sizes) != x.shape[axis]:
        raise ShapeError(f"split: sizes {list(sizes)} do not add up to {x.shape[axis]}")
    ends = np.cumsum([0, *sizes])
    lead = (slice(None),) * axis
    return [
        sliced(x, (*lead, slice(int(a), int(b)), *(slice(None),) * (x.ndim - axis - 1)))
        for a, b in pairwise(ends)
    ]


def bitcast(x: Tensor, dtype: Any) -> Tensor:
    """The same bytes as another dtype; the last axis changes with the item size. No gradient."""
    wanted = dtypes.parse(dtype)
    if x.ndim == 0 or x.shape[-1] * x.dtype.itemsize % wanted.itemsize:
        raise ShapeError(
            f"bitcast: the last axis of {x.dtype}{list(x.shape)} does not divide into {wanted}"
        )
    return _wrap(x.backend.bitcast(x.data, wanted), x)
