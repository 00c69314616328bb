"""Reductions and products as ops, each with its gradient."""
# ruff: noqa: A001  (named as in numpy)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from boostr import dtypes
from boostr.dispatch import Op, Saves, common_backend
from boostr.errors import DTypeError, ShapeError
from boostr.ops.elementwise import cast, check_broadcast, eq
from boostr.ops.views import broadcast_to, checked_axis, reshape, unbroadcast
from boostr.tensor import Tensor

Axes = int | Sequence[int] | None


def _wrap(data: Any, like: Tensor) -> Tensor:
    return Tensor.wrap(data, like.backend)


# -- reductions ----------------------------------------------------------------------------------
def _axes(op: str, x: Tensor, axis: Axes) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    wanted = (axis,) if isinstance(axis, int) else axis
    axes = tuple(checked_axis(op, a, x.ndim) for a in wanted)
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{op}: axes {tuple(wanted)} name an axis twice")
    return axes


def _keep(g: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A reduced tensor with its lost axes back, as length 1."""
    return reshape(g, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _reduction(
    name: str, vjp: Callable[..., Tensor], saves: Saves = ("x", 0)
) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
        return _wrap(x.backend.reduce(name, x.data, axes, keepdims), x)

    def gradient(g: Tensor, y: Tensor, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> tuple:
        y = _keep(y, x, axes) if saves else y
        return vjp(_keep(g, x, axes), y, x, axes), None, None

    op = Op(name, run, vjp=gradient, saves=saves, primitive=True)

    def function(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
        axes = _axes(name, x, axis)
        if name == "sum" and x.dtype.kind in "biu" and x.dtype.itemsize < 4:
            x = cast(x, dtypes.int32)  # the sum of flags or bytes is a count
        if name != "sum" and math.prod(x.shape[a] for a in axes) == 0:
            raise ShapeError(f"{name}: no elements along axes {axes} of {list(x.shape)}")
        return op(x, axes, keepdims)

    function.__name__ = name
    function.__doc__ = f"{name} over `axis` (None: all)."
    if name == "sum":
        function.__doc__ += " Low precision is added in float32; bool and bytes give int32."
    return function


def _extremum_vjp(g: Tensor, y: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    chosen = cast(eq(x, y), g.dtype)
    return g * chosen / sum(chosen, axes, keepdims=True)  # ties share


sum = _reduction("sum", lambda g, y, x, axes: broadcast_to(g, x.shape), saves=())
max = _reduction("max", _extremum_vjp)
min = _reduction("min", _extremum_vjp)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis`, in x's dtype; integers become float32."""
    wide = x if x.dtype == dtypes.float64 else cast(x, dtypes.float32)
    axes = _axes("mean", x, axis)
    count = math.prod(x.shape[a] for a in axes)
    if count == 0:
        raise ShapeError(f"mean: no elements along axis {axis} of {list(x.shape)}")
    result = sum(wide, axes, keepdims) * (1.0 / count)  # a float16 sum could overflow
    return cast(result, x.dtype) if dtypes.is_float(x.dtype) else result


def argmax(x: Tensor, axis: int = -1) -> Tensor:
    """int32 index of the first maximum along `axis`; has no gradient."""
    a = checked_axis("argmax", axis, x.ndim)
    if x.shape[a] == 0:
        raise ShapeError(f"argmax: axis {axis} of {list(x.shape)} is empty")
    return _argmax_op(x, a)


_argmax_op = Op(
    "argmax",
    lambda x, axis: _wrap(x.backend.argmax(x.data, axis), x),
    vjp=lambda g, y, x, axis: (None, None),
    saves=(),
)


def argsort(x: Tensor, axis: int = -1) -> Tensor:
    """int32 indices that sort ascending along `axis`, stable; has no gradient."""
    a = checked_axis("argsort", axis, x.ndim)
    return _wrap(x.backend.argsort(x.data, a), x)


_cumsum_op = Op(
    "cumsum",
    lambda x, axis: _wrap(x.backend.cumsum(x.data, axis), x),
    vjp=lambda g, y, x, axis: (_suffix_sum(g, axis), None),
    saves=(),
    primitive=True,
)


def cumsum(x: Tensor, axis: int = -1) -> Tensor:
    """Sums of all elements up to and including each, along `axis`."""
    return _cumsum_op(x, checked_axis("cumsum", axis, x.ndim))


def _suffix_sum(g: Tensor, axis: int) -> Tensor:
    return sum(g, axis, keepdims=True) - cumsum(g, axis) + g


# -- products ------------------------------------------------------------------------------------
def _matmul_vjp(g: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
    da = unbroadcast(matmul(g, b.transpose()), a) if a.requires_grad else None
    return da, unbroadcast(matmul(a.transpose(), g), b) if b.requires_grad else None


_matmul_op = Op(
    "matmul",
    lambda a, b: _wrap(a.backend.matmul(a.data, b.data), a),
    vjp=_matmul_vjp,
    saves={"a": "b", "b": "a"},
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
    check_broadcast("matmul", a.shape[:-2], b.shape[:-2])
    return _matmul_op(a, b)
