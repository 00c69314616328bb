"""Reductions, products and indexing as ops, each with its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from boostr import dtypes
from boostr.dispatch import Op, common_backend
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core
from boostr.tensor import Tensor

Axes = int | Sequence[int] | None


def _wrap(data: Any, like: Tensor) -> Tensor:
    return Tensor.wrap(data, like.backend)


# -- reductions ----------------------------------------------------------------------------------
def _axes(x: Tensor, axis: Axes) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    wanted = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in wanted:
        if not -x.ndim <= a < x.ndim:
            raise ShapeError(f"reduce: axis {a} of a tensor with {x.ndim} axes")
    return tuple(a % x.ndim for a in wanted)


def _keep(g: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A reduced tensor with its lost axes back, as length 1."""
    return core.reshape(g, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _reduction(name: str, vjp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
        return _wrap(x.backend.reduce(name, x.data, axes, keepdims), x)

    def gradient(g: Tensor, y: Tensor, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> tuple:
        return vjp(_keep(g, x, axes), _keep(y, x, axes), x, axes), None, None

    op = Op(name, run, vjp=gradient, primitive=True)

    def function(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
        axes = _axes(x, axis)
        if name != "sum" and math.prod(x.shape[a] for a in axes) == 0:
            raise ShapeError(f"{name}: no elements along axes {axes} of {list(x.shape)}")
        return op(x, axes, keepdims)

    function.__name__ = name
    function.__doc__ = f"{name} over `axis` (None: all); low precision is summed in float32."
    return function


def _extremum_vjp(g: Tensor, y: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    chosen = core.cast(core.eq(x, y), g.dtype)
    return g * chosen / sum(chosen, axes, keepdims=True)  # ties share


sum = _reduction("sum", lambda g, y, x, axes: core.broadcast_to(g, x.shape))
max = _reduction("max", _extremum_vjp)
min = _reduction("min", _extremum_vjp)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis`; integers become float32."""
    if not dtypes.is_float(x.dtype):
        x = core.cast(x, dtypes.float32)
    count = math.prod(x.shape[a] for a in _axes(x, axis))
    if count == 0:
        raise ShapeError(f"mean: no elements along axis {axis} of {list(x.shape)}")
    return sum(x, axis, keepdims) * (1.0 / count)


def argmax(x: Tensor, axis: int = -1) -> Tensor:
    """int32 index of the first maximum along `axis`; has no gradient."""
    (a,) = _axes(x, axis)
    if x.shape[a] == 0:
        raise ShapeError(f"argmax: axis {axis} of {list(x.shape)} is empty")
    return _argmax_op(x, a)


_argmax_op = Op(
    "argmax", lambda x, axis: _wrap(x.backend.argmax(x.data, axis), x), vjp=lambda *a: (None, None)
)


def argsort(x: Tensor, axis: int = -1) -> Tensor:
    """int32 indices that sort ascending along `axis`, stable; has no gradient."""
    (a,) = _axes(x, axis)
    return _wrap(x.backend.argsort(x.data, a), x)


_cumsum_op = Op(
    "cumsum",
    lambda x, axis: _wrap(x.backend.cumsum(x.data, axis), x),
    vjp=lambda g, y, x, axis: (_suffix_sum(g, axis), None),
    primitive=True,
)


def cumsum(x: Tensor, axis: int = -1) -> Tensor:
    """Sums of all elements up to and including each, along `axis`."""
    (a,) = _axes(x, axis)
    return _cumsum_op(x, a)


def _suffix_sum(g: Tensor, axis: int) -> Tensor:
    return sum(g, axis, keepdims=True) - cumsum(g, axis) + g


# -- products ------------------------------------------------------------------------------------
def _matmul_vjp(g: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return core.unbroadcast(matmul(g, b.transpose()), a), core.unbroadcast(
        matmul(a.transpose(), g), b
    )


_matmul_op = Op(
    "matmul",
    lambda a, b: _wrap(a.backend.matmul(a.data, b.data), a),
    vjp=_matmul_vjp,
    primitive=True,
)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """[..., M, K] @ [..., K, N] -> [..., M, N], leading axes broadcast; sums in float32 or wider."""
    common_backend("matmul", [a, b])
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: expected [..., M, K] @ [..., K, N], got {list(a.shape)} @ {list(b.shape)}"
        )
    if a.dtype != b.dtype:
        raise DTypeError(f"matmul: dtypes must agree, got {a.dtype} and {b.dtype}; use .to(dtype)")
    return _matmul_op(a, b)


# -- indexing ------------------------------------------------------------------------------------
def _take_vjp(g: Tensor, y: Tensor, x: Tensor, indices: Tensor, axis: int) -> tuple:
    lead = g.permute(
        *range(axis, axis + indices.ndim), *range(axis), *range(axis + indices.ndim, g.ndim)
    )
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    rows = core.reshape(lead, (indices.size, *rest))
    spread = scatter_add((x.shape[axis], *rest), core.reshape(indices, (indices.size,)), rows)
    order = (*range(1, axis + 1), 0, *range(axis + 1, x.ndim))
    return core.permute(spread, order), None, None


_take_op = Op(
    "take",
    lambda x, indices, axis: _wrap(x.backend.take(x.data, indices.data, axis), x),
    vjp=_take_vjp,
    primitive=True,
)


def take(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """x's entries at `indices` along `axis`; the axes of `indices` take that axis's place."""
    common_backend("take", [x, indices])
    _check_integer("take", indices)
    (a,) = _axes(x, axis)
    return _take_op(x, indices, a)


def _take_along_vjp(g: Tensor, y: Tensor, x: Tensor, indices: Tensor, axis: int) -> tuple:
    n, m = x.shape[axis], indices.shape[axis]
    order = (*(i for i in range(x.ndim) if i != axis), axis)
    lines = core.reshape(core.permute(indices, order), (-1, m))
    starts = Tensor.wrap(x.backend.arange(0, len(lines) * n, n, dtypes.int32), x.backend)
    flat = core.reshape(lines + core.reshape(starts, (-1, 1)), (-1,))
    spread = scatter_add((len(lines) * n,), flat, core.permute(g, order).flatten())
    moved = core.reshape(spread, tuple(x.shape[i] for i in order))
    back = tuple(order.index(i) for i in range(x.ndim))
    return core.permute(moved, back), None, None


_take_along_op = Op(
    "take_along",
    lambda x, indices, axis: _wrap(x.backend.take_along(x.data, indices.data, axis), x),
    vjp=_take_along_vjp,
    primitive=True,
)


def take_along(x: Tensor, indices: Tensor, axis: int = -1) -> Tensor:
    """out[.., i, ..] = x[.., indices[.., i, ..], ..]: one entry for each index, ranks equal."""
    common_backend("take_along", [x, indices])
    _check_integer("take_along", indices)
    (a,) = _axes(x, axis)
    if indices.ndim != x.ndim:
        raise ShapeError(
            f"take_along: indices must have {x.ndim} axes as x has, got {indices.ndim}"
        )
    return _take_along_op(x, indices, a)


_scatter_op = Op(
    "scatter_add",
    lambda shape, indices, rows: _wrap(
        rows.backend.scatter_add(shape, indices.data, rows.data), rows
    ),
    vjp=lambda g, y, shape, indices, rows: (None, None, take(g, indices, 0)),
    primitive=True,
)


def scatter_add(shape: Sequence[int], indices: Tensor, rows: Tensor) -> Tensor:
    """zeros(shape) with rows[i] added to its row indices[i]; repeated indices add up."""
    _check_integer("scatter_add", indices)
    return _scatter_op(tuple(shape), indices, rows)


def _check_integer(op: str, indices: Tensor) -> None:
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"{op}: indices must be integers, got {indices.dtype}")
