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


# -- gradients -----------------------------------------------------------------------------------
def _rms_backward(
    g: Tensor,
    passed: Tensor | None,
    h: Tensor,
    weight: Tensor,
    eps: float,
    weight_offset: float,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """(dh, dweight). g is the gradient of the result, `passed` that of h itself.

    With n = h / rms and c = g · (weight + offset): dh = (c - n · mean(c · n)) / rms + passed,
    dweight = the sum over rows of g · n.
    """
    wide_h, wide_g = wide(h), wide(g)
    scale = core.rsqrt(core.mean(wide_h * wide_h, -1, keepdims=True) + eps)
    n, c = wide_h * scale, wide_g * (wide(weight) + weight_offset)
    dh = scale * (c - n * core.mean(c * n, -1, keepdims=True))
    dw = _over_rows(wide_g * n, weight) if wants_weight else None
    return _with_passed(dh, passed, h), dw


def _layer_backward(
    g: Tensor, passed: Tensor | None, h: Tensor, weight: Tensor, eps: float, wants_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dh, dweight, dbias). As for RMS, with n = (h - mean(h)) / sd, and c loses its mean."""
    wide_h, wide_g = wide(h), wide(g)
    centred = wide_h - core.mean(wide_h, -1, keepdims=True)
    scale = core.rsqrt(core.mean(centred * centred, -1, keepdims=True) + eps)
    n, c = centred * scale, wide_g * wide(weight)
    c = c - core.mean(c, -1, keepdims=True)
    dh = _with_passed(scale * (c - n * core.mean(c * n, -1, keepdims=True)), passed, h)
    if not wants_weight:
        return dh, None, None
    return dh, _over_rows(wide_g * n, weight), _over_rows(wide_g, weight)


def _over_rows(x: Tensor, like: Tensor) -> Tensor:
    """The sum over all axes but the last, in the dtype of `like`."""
    return core.cast(core.sum(x.reshape(-1, x.shape[-1]), 0), like.dtype)


def _with_passed(dh: Tensor, passed: Tensor | None, h: Tensor) -> Tensor:
    return core.cast(dh if passed is None else dh + wide(passed), h.dtype)


def _rms_vjp(g, y, x, weight, eps, weight_offset, passed=None):
    wants = weight.requires_grad
    return *_rms_norm_backward(g, passed, x, weight, eps, weight_offset, wants), None, None


def _add_rms_vjp(grads, outputs, x, residual, weight, eps, weight_offset):
    g, passed = grads
    if g is None:
        return passed, passed, None, None, None
    wants = weight.requires_grad
    dh, dw = _rms_norm_backward(g, passed, outputs[1], weight, eps, weight_offset, wants)
    return dh, dh, dw, None, None


def _layer_vjp(g, y, x, weight, bias, eps, passed=None):
    wants = weight.requires_grad or (bias is not None and bias.requires_grad)
    dh, dw, db = _layer_norm_backward(g, passed, x, weight, eps, wants)
    return dh, dw, _as_bias(db, bias), None


def _add_layer_vjp(grads, outputs, x, residual, weight, bias, eps):
    g, passed = grads
    if g is None:
        return passed, passed, None, None, None
    wants = weight.requires_grad or (bias is not None and bias.requires_grad)
    dh, dw, db = _layer_norm_backward(g, passed, outputs[1], weight, eps, wants)
    return dh, dh, dw, _as_bias(db, bias), None


def _as_bias(db: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """dbias comes in the weight's dtype."""
    return db if db is None or bias is None else core.cast(db, bias.dtype)


_rms_norm = Op("rms_norm", _rms, vjp=_rms_vjp, saves=("x", "weight"), adds="passed")
_add_rms_norm = Op("add_rms_norm", _add_rms, vjp=_add_rms_vjp, saves=("weight", 1))
_layer_norm = Op("layer_norm", _layer, vjp=_layer_vjp, saves=("x", "weight"), adds="passed")
_add_layer_norm = Op("add_layer_norm", _add_layer, vjp=_add_layer_vjp, saves=("weight", 1))
_rms_norm_backward = Op("rms_norm_backward", _rms_backward)
_layer_norm_backward = Op("layer_norm_backward", _layer_backward)
