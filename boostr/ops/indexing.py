"""Entries by number as ops, each with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op, common_backend
from boostr.errors import DTypeError, ShapeError
from boostr.ops.views import checked_axis, permute, reshape, sliced
from boostr.tensor import Tensor


def _wrap(data: Any, like: Tensor) -> Tensor:
    return Tensor.wrap(data, like.backend)


def index(x: Tensor, key: Any) -> Tensor:
    """x[key]: integers, slices, None and `...`, or one integer tensor for the first axis."""
    if isinstance(key, Tensor | np.ndarray | list):
        indices = key if isinstance(key, Tensor) else Tensor(key, backend=x.backend)
        return take(x, indices, 0)
    keys = key if isinstance(key, tuple) else (key,)
    given = sum(k is not None and k is not Ellipsis for k in keys)
    if given > x.ndim:
        raise ShapeError(f"index: {given} indices for {x.ndim} axes")
    if Ellipsis not in keys:
        keys = (*keys, Ellipsis)
    at = keys.index(Ellipsis)
    keys = keys[:at] + (slice(None),) * (x.ndim - given) + keys[at + 1 :]
    slices, shape, axis = [], [], 0
    for k in keys:
        if k is None:
            shape.append(1)
            continue
        n = x.shape[axis]
        if isinstance(k, slice):
            slices.append(k)
            shape.append(len(range(*k.indices(n))))
        else:
            at = _checked_index(k, n, axis)
            slices.append(slice(at, at + 1))
        axis += 1
    part = sliced(x, tuple(slices))
    return part if part.shape == tuple(shape) else reshape(part, shape)


def _checked_index(k: Any, n: int, axis: int) -> int:
    if not hasattr(k, "__index__"):
        raise DTypeError(f"index: expected an integer, slice, None or ..., got {type(k).__name__}")
    at = k.__index__()
    if not -n <= at < n:
        raise IndexError(f"index: {at} is outside of axis {axis} of length {n}")
    return at % n


def _take_vjp(g: Tensor, y: Tensor, x: Tensor, indices: Tensor, axis: int) -> tuple:
    lead = g.permute(
        *range(axis, axis + indices.ndim), *range(axis), *range(axis + indices.ndim, g.ndim)
    )
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    rows = reshape(lead, (indices.size, *rest))
    spread = scatter_add((x.shape[axis], *rest), reshape(indices, (indices.size,)), rows)
    order = (*range(1, axis + 1), 0, *range(axis + 1, x.ndim))
    return permute(spread, order), None, None


_take_op = Op(
    "take",
    lambda x, indices, axis: _wrap(x.backend.take(x.data, indices.data, axis), x),
    vjp=_take_vjp,
    saves=("indices",),
    primitive=True,
)


def take(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """x's entries at `indices` along `axis`; the axes of `indices` take that axis's place."""
    common_backend("take", [x, indices])
    _check_integer("take", indices)
    return _take_op(x, indices, checked_axis("take", axis, x.ndim))


def _take_along_vjp(g: Tensor, y: Tensor, x: Tensor, indices: Tensor, axis: int) -> tuple:
    n, m = x.shape[axis], indices.shape[axis]
    order = (*(i for i in range(x.ndim) if i != axis), axis)
    lines = reshape(permute(indices, order), (-1, m))
    starts = Tensor.wrap(x.backend.arange(0, len(lines) * n, n, dtypes.int32), x.backend)
    flat = reshape(lines + reshape(starts, (-1, 1)), (-1,))
    spread = scatter_add((len(lines) * n,), flat, permute(g, order).flatten())
    moved = reshape(spread, tuple(x.shape[i] for i in order))
    back = tuple(order.index(i) for i in range(x.ndim))
    return permute(moved, back), None, None


_take_along_op = Op(
    "take_along",
    lambda x, indices, axis: _wrap(x.backend.take_along(x.data, indices.data, axis), x),
    vjp=_take_along_vjp,
    saves=("indices",),
    primitive=True,
)


def take_along(x: Tensor, indices: Tensor, axis: int = -1) -> Tensor:
    """out[.., i, ..] = x[.., indices[.., i, ..], ..]: one entry, in 0..n-1, for each index.

    `indices` has x's shape except along `axis`.
    """
    common_backend("take_along", [x, indices])
    _check_integer("take_along", indices)
    a = checked_axis("take_along", axis, x.ndim)
    if indices.shape[:a] + indices.shape[a + 1 :] != x.shape[:a] + x.shape[a + 1 :]:
        raise ShapeError(
            f"take_along: indices must be as x {list(x.shape)} except along axis {a}, "
            f"got {list(indices.shape)}"
        )
    return _take_along_op(x, indices, a)


_scatter_op = Op(
    "scatter_add",
    lambda shape, indices, rows: _wrap(
        rows.backend.scatter_add(shape, indices.data, rows.data), rows
    ),
    vjp=lambda g, y, shape, indices, rows: (None, None, take(g, indices, 0)),
    saves=("indices",),
    primitive=True,
)


def scatter_add(shape: Sequence[int], indices: Tensor, rows: Tensor) -> Tensor:
    """zeros(shape) with rows[i] added to its row indices[i]; repeated indices add up."""
    common_backend("scatter_add", [indices, rows])
    _check_integer("scatter_add", indices)
    if indices.ndim != 1 or rows.shape != (indices.size, *shape[1:]):
        raise ShapeError(
            f"scatter_add: expected indices [N] and rows {['N', *shape[1:]]}, "
            f"got {list(indices.shape)} and {list(rows.shape)}"
        )
    return _scatter_op(tuple(shape), indices, rows)


def _check_integer(op: str, indices: Tensor) -> None:
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"{op}: indices must be integers, got {indices.dtype}")
