"""RMS and layer normalisation over the last axis, optionally with the residual add before it.

Statistics and the product with the weight are in float32 (float64 for float64 inputs), the result
in x's dtype. With `residual`, h = x + residual is normalised and returned too: one pass over
memory.
"""

from __future__ import annotations

from typing import overload

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core
from boostr.tensor import Tensor


@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = ..., weight_offset: float = ...
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = ..., residual: Tensor, weight_offset: float = ...
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = ...,
    residual: Tensor | None,
    weight_offset: float = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """x / sqrt(mean(x²) + eps) · (weight + weight_offset), over the last axis.

    Args:
        x: [..., E] float.   weight: [E].   residual: as x; it is added to x first.
        eps: added to the mean square.   weight_offset: 1 for Gemma, stored minus 1.
    Returns:
        [..., E] in x's dtype; with `residual` the pair (normalised, x + residual).
    Source: Zhang & Sennrich 2019, Root Mean Square Layer Normalization.
    """
    _check("rms_norm", x, weight, None, residual)
    if residual is None:
        return _rms_norm(x, weight, eps, weight_offset)
    return _add_rms_norm(x, residual, weight, eps, weight_offset)


@overload
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., *, eps: float = ...
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., *, eps: float = ..., residual: Tensor
) -> tuple[Tensor, Tensor]: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    eps: float = ...,
    residual: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """(x - mean(x)) / sqrt(var(x) + eps) · weight + bias, over the last axis; var is biased.

    Args:
        x: [..., E] float.   weight, bias: [E].   residual: as x; it is added to x first.
    Returns:
        [..., E] in x's dtype; with `residual` the pair (normalised, x + residual).
    Source: Ba et al. 2016, Layer Normalization.
    """
    _check("layer_norm", x, weight, bias, residual)
    if residual is None:
        return _layer_norm(x, weight, bias, eps)
    return _add_layer_norm(x, residual, weight, bias, eps)


def _check(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> None:
    if not dtypes.is_float(x.dtype):
        raise DTypeError(f"{op}: x must be a float tensor, got {x.dtype}")
    if x.ndim < 1:
        raise ShapeError(f"{op}: x must be [..., E], got a scalar")
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and part.shape != x.shape[-1:]:
            raise ShapeError(
                f"{op}: {name} must be [E] = {list(x.shape[-1:])}, got {list(part.shape)}"
            )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ShapeError(
            f"{op}: residual must be {x.dtype}{list(x.shape)} as x, "
            f"got {residual.dtype}{list(residual.shape)}"
        )


def wide(x: Tensor) -> Tensor:
    """x in the dtype that statistics are computed in: float32, or float64 as it came."""
    return x if x.dtype == dtypes.float64 else core.cast(x, dtypes.float32)


def _rms(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    h = wide(x)
    scale = core.rsqrt(core.mean(h * h, -1, keepdims=True) + eps)
    return core.cast(h * scale * (wide(weight) + weight_offset), x.dtype)


def _add_rms(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    h = x + residual
    return _rms(h, weight, eps, weight_offset), h


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    h = wide(x)
    centred = h - core.mean(h, -1, keepdims=True)
    scale = core.rsqrt(core.mean(centred * centred, -1, keepdims=True) + eps)
    y = centred * scale * wide(weight)
    return core.cast(y if bias is None else y + wide(bias), x.dtype)


def _add_layer(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    h = x + residual
    return _layer(h, weight, bias, eps), h


_rms_norm = Op("rms_norm", _rms)
_add_rms_norm = Op("add_rms_norm", _add_rms)
_layer_norm = Op("layer_norm", _layer)
_add_layer_norm = Op("add_layer_norm", _add_layer)
