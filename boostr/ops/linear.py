"""Products with a weight [out, in] in any stored form: the op that most of a model's time is in."""

from __future__ import annotations

import math

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op, is_recorded
from boostr.errors import DTypeError, ShapeError
from boostr.operands import LowRank, Ordered, Recorded
from boostr.ops import core
from boostr.ops.dropout import dropout
from boostr.ops.norm import wide
from boostr.ops.quant import dequantize, quantize_rows
from boostr.quant.forms import W8A8, scheme_form
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Plain = Tensor | QuantizedTensor
Weight = Plain | Ordered | LowRank
_CHUNK = 1 << 22  # weights decoded at a time by the composite, which bounds its memory to 16 MiB


def linear(
    x: Tensor,
    weight: Weight | Recorded,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: object = None,
    *,
    rounded: bool = False,
) -> Tensor:
    """x @ weightᵀ + bias + residual, summed in float32 (float64 for float64 inputs).

    Args:
        x: [..., K] float.   weight: [N, K], a float tensor of any width, a QuantizedTensor, or
            one with its inputs Ordered or Recorded, or any under a LowRank adapter; it is decoded
            inside the product and x keeps its precision, except under "w8a8", where each row of x
            is rounded to int8 by its own scale and the products are summed in int32.
        bias: [N].   residual: [..., N] in x's dtype.
        dtype: of the result; default x's.
        rounded: a packed weight may be rounded to x's dtype before the product, as its gradient
            does, where that is faster; so may one under an adapter that is on the tape.
    Returns:
        [..., N].
    Gradient: x, a float weight, an adapter, bias, residual.
    """
    if not dtypes.is_float(x.dtype) or x.ndim < 1:
        raise DTypeError(f"linear: x must be float [..., K], got {x.dtype}{list(x.shape)}")
    if len(weight.shape) != 2 or weight.shape[1] != x.shape[-1]:
        raise ShapeError(
            f"linear: weight must be [N, K] with K = {x.shape[-1]}, got {list(weight.shape)}"
        )
    if isinstance(weight, Tensor) and not dtypes.is_float(weight.dtype):
        raise DTypeError(f"linear: weight must be float or quantized, got {weight.dtype}")
    N = weight.shape[0]
    if bias is not None and bias.shape != (N,):
        raise ShapeError(f"linear: bias must be [N] = [{N}], got {list(bias.shape)}")
    if residual is not None and residual.shape != (*x.shape[:-1], N):
        raise ShapeError(
            f"linear: residual must be {[*x.shape[:-1], N]}, got {list(residual.shape)}"
        )
    wanted = x.dtype if dtype is None else dtypes.parse(dtype)
    if not dtypes.is_float(wanted):
        raise DTypeError(f"linear: dtype must be a float, got {wanted}")
    return _linear(x, weight, bias, residual, wanted, rounded)


def _composite(
    x: Tensor,
    weight: Weight | Recorded,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: np.dtype,
    rounded: bool,
) -> Tensor:
    if isinstance(weight, LowRank):
        return _adapted(x, weight, bias, residual, dtype, rounded)
    if isinstance(weight, Recorded):
        weight.see(x)
        return linear(x, weight.base, bias, residual, dtype, rounded=rounded)
    if isinstance(weight, Ordered):
        x = core.take(x, weight.order, -1)
        return linear(x, weight.base, bias, residual, dtype, rounded=rounded)
    h = wide(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])  # also of no columns
    if isinstance(weight, QuantizedTensor) and weight.scheme.activations_int8:
        y = _rounded(h, weight)
    else:
        y = _decoded(h, weight)
    if bias is not None:
        y = y + core.cast(bias, y.dtype)
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    if residual is not None:
        y = y + core.cast(residual, y.dtype)
    return core.cast(y, dtype)


def _adapted(
    x: Tensor, weight: LowRank, bias: Tensor | None, residual: Tensor | None, dtype: np.dtype,
    rounded: bool,
) -> Tensor:  # fmt: skip
    """x (base + scale · up · down)ᵀ, as products of x with each: base's kernels serve it. Factors
    that are kept in float32, to be trained, are multiplied in x's dtype."""
    rounded = rounded or is_recorded([weight.down, weight.up])
    y = linear(x, weight.base, bias, residual, dtype, rounded=rounded)
    down, up = core.cast(weight.down, x.dtype), core.cast(weight.up, x.dtype)
    if weight.dropout is not None and is_recorded([weight.down]):
        low = linear(dropout(x, *weight.dropout), down) * weight.scale
    else:
        low = linear(x, down) * weight.scale
    if y.dtype == low.dtype:
        return linear(low, up, None, y)
    return y + linear(low, up, dtype=dtype)


def _decoded(h: Tensor, weight: Plain) -> Tensor:
    """h @ weightᵀ, with the weight decoded to h's dtype a band of rows at a time."""
    N, K = weight.shape
    if isinstance(weight, Tensor) and weight.dtype == h.dtype:
        return h @ weight.T
    rows = max(_CHUNK // max(K, 1), 1)
    parts = [
        h @ core.cast(_float(_rows(weight, start, min(start + rows, N))), h.dtype).T
        for start in range(0, N, rows)
    ]
    return parts[0] if len(parts) == 1 else core.concat(parts, 1)


def _rows(weight: Plain, start: int, stop: int) -> Plain:
    if (start, stop) == (0, weight.shape[0]):
        return weight
    return weight[start:stop] if isinstance(weight, Tensor) else weight.rows(start, stop)


def _float(weight: Plain) -> Tensor:
    return dequantize(weight) if isinstance(weight, QuantizedTensor) else weight


def _rounded(h: Tensor, weight: QuantizedTensor) -> Tensor:
    """The product of h rounded to int8 by a scale a row; of integers where the weight is so too."""
    values, scales = quantize_rows(h)
    if scheme_form(weight.scheme) != W8A8:
        return _decoded(core.cast(values, h.dtype), weight) * scales
    exact = core.cast(values, dtypes.int32) @ core.cast(weight.parts["codes"], dtypes.int32).T
    return core.cast(exact, h.dtype) * scales * weight.parts["scales"].reshape(1, -1)


# -- gradients -----------------------------------------------------------------------------------
def _input_gradient(g: Tensor, weight: Plain, dtype: np.dtype, into: Tensor | None) -> Tensor:
    """dx [..., K] of `dtype`: g [..., N] · weight, summed in float32 or wider; or added to `into`,
    which is returned. What rounding x does under "w8a8" is taken for 0 (a straight-through
    estimate)."""
    N, K = weight.shape
    flat = wide(g).reshape(-1, N)
    if isinstance(weight, Tensor):
        dx = flat @ core.cast(weight, flat.dtype)
    else:
        rows = max(_CHUNK // max(K, 1), 1)
        bands = [(start, min(start + rows, N)) for start in range(0, N, rows)]
        parts = (
            flat[:, a:b] @ core.cast(_float(_rows(weight, a, b)), flat.dtype) for a, b in bands
        )
        dx = next(parts)
        for part in parts:
            dx = dx + part
    dx = dx.reshape(*g.shape[:-1], K)
    return core.cast(dx, dtype) if into is None else into.assign(into + dx)


def _weight_gradient(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> Tensor:
    """dweight [N, K] of `dtype`: gᵀ [N, T] · x [T, K], summed in float32 or wider; or added to
    `into`, which is returned."""
    inputs = wide(x).reshape(-1, x.shape[-1])
    dw = core.cast(g, inputs.dtype).reshape(-1, g.shape[-1]).T @ inputs
    return core.cast(dw, dtype) if into is None else into.assign(into + dw)


def _vjp(
    g: Tensor, y: Tensor, x: Tensor, weight: Plain, bias: Tensor | None,
    residual: Tensor | None, dtype: np.dtype, rounded: bool, into: Tensor | None = None,
):  # fmt: skip
    dx = dw = None
    if x.requires_grad:
        fits = into is not None and into.dtype == x.dtype and x.backend.is_contiguous(into.data)
        dx = linear_input_gradient(g, weight, x.dtype, into if fits else None)
    if not isinstance(weight, QuantizedTensor) and weight.requires_grad:
        dw = linear_weight_gradient(g, x, weight.dtype, None)
    dresidual = None if residual is None else core.cast(g, residual.dtype)
    return dx, dw, bias_gradient(g, bias), dresidual, None, None


def bias_gradient(g: Tensor, bias: Tensor | None) -> Tensor | None:
    """dbias [N]: the sum of the rows of g [..., N], in float32; None if it is not asked for."""
    if bias is None or not bias.requires_grad:
        return None
    return core.cast(core.sum(wide(g).reshape(-1, bias.shape[0]), 0), bias.dtype)


_linear = Op("linear", _composite, vjp=_vjp, saves={"x": "weight", "weight": "x"}, adds="into")
linear_input_gradient = Op("linear_input_gradient", _input_gradient)
linear_weight_gradient = Op("linear_weight_gradient", _weight_gradient)
