"""Reductions, products and indexing as ops, each with its gradient."""
# ruff: noqa: A001  (named as in numpy)

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
def _axes(op: str, x: Tensor, axis: Axes) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    wanted = (axis,) if isinstance(axis, int) else axis
    axes = tuple(core.checked_axis(op, a, x.ndim) for a in wanted)
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{op}: axes {tuple(wanted)} name an axis twice")
    return axes


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
        axes = _axes(name, x, axis)
        if name == "sum" and x.dtype.kind in "biu" and x.dtype.itemsize < 4:
            x = core.cast(x, dtypes.int32)  # the sum of flags or bytes is a count
        if name != "sum" and math.prod(x.shape[a] for a in axes) == 0:
            raise ShapeError(f"{name}: no elements along axes {axes} of {list(x.shape)}")
        return op(x, axes, keepdims)

    function.__name__ = name
    function.__doc__ = f"{name} over `axis` (None: all)."
    if name == "sum":
        function.__doc__ += " Low precision is added in float32; bool and bytes give int32."
    return function


def _extremum_vjp(g: Tensor, y: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    chosen = core.cast(core.eq(x, y), g.dtype)
    return g * chosen / sum(chosen, axes, keepdims=True)  # ties share


sum = _reduction("sum", lambda g, y, x, axes: core.broadcast_to(g, x.shape))
max = _reduction("max", _extremum_vjp)
min = _reduction("min", _extremum_vjp)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis`, in x's dtype; integers become float32."""
    wide = x if x.dtype == dtypes.float64 else core.cast(x, dtypes.float32)
    axes = _axes("mean", x, axis)
    count = math.prod(x.shape[a] for a in axes)
    if count == 0:
        raise ShapeError(f"mean: no elements along axis {axis} of {list(x.shape)}")
    result = sum(wide, axes, keepdims) * (1.0 / count)  # a float16 sum could overflow
    return core.cast(result, x.dtype) if dtypes.is_float(x.dtype) else result


def argmax(x: Tensor, axis: int = -1) -> Tensor:
    """int32 index of the first maximum along `axis`; has no gradient."""
    a = core.checked_axis("argmax", axis, x.ndim)
    if x.shape[a] == 0:
        raise ShapeError(f"argmax: axis {axis} of {list(x.shape)} is empty")
    return _argmax_op(x, a)


_argmax_op = Op(
    "argmax", lambda x, axis: _wrap(x.backend.argmax(x.data, axis), x), vjp=lambda *a: (None, None)
)


def argsort(x: Tensor, axis: int = -1) -> Tensor:
    """int32 indices that sort ascending along `axis`, stable; has no gradient."""
    a = core.checked_axis("argsort", axis, x.ndim)
    return _wrap(x.backend.argsort(x.data, a), x)


_cumsum_op = Op(
    "cumsum",
    lambda x, axis: _wrap(x.backend.cumsum(x.data, axis), x),
    vjp=lambda g, y, x, axis: (_suffix_sum(g, axis), None),
    primitive=True,
)


def cumsum(x: Tensor, axis: int = -1) -> Tensor:
    """Sums of all elements up to and including each, along `axis`."""
    return _cumsum_op(x, core.checked_axis("cumsum", axis, x.ndim))


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
    """[..., M, K] @ [..., K, N] -> [..., M, N], leading axes broadcast; float32 sums or wider."""
    for v in (a, b):
        if not isinstance(v, Tensor):
            raise DTypeError(f"matmul: expected two Tensors, got {type(v).__name__}")
    common_backend("matmul", [a, b])
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: expected [..., M, K] @ [..., K, N], got {list(a.shape)} @ {list(b.shape)}"
        )
    if a.dtype != b.dtype:
        raise DTypeError(f"matmul: dtypes must agree, got {a.dtype} and {b.dtype}; use .to(dtype)")
    core.check_broadcast("matmul", a.shape[:-2], b.shape[:-2])
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
    return _take_op(x, indices, core.checked_axis("take", axis, x.ndim))


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
    """out[.., i, ..] = x[.., indices[.., i, ..], ..]: one entry, in 0..n-1, for each index.

    `indices` has x's shape except along `axis`.
    """
    common_backend("take_along", [x, indices])
    _check_integer("take_along", indices)
    a = core.checked_axis("take_along", axis, x.ndim)
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
