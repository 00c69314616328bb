"""Gradients of linear by cuBLASLt: dx = g · weight and dweight = gᵀ · x. Operands have the dtype of
x, sums are float32: tensor cores multiply 16 bits. Packed weights are decoded to that dtype.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.products import blas
from boostr.backends.cupy.products.quant import dequantize
from boostr.backends.cupy.products.stored import Weight, form_refusal
from boostr.quant.forms import form_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


def _refusal(backend: Any, *kinds: np.dtype) -> str | None:
    for kind in kinds:
        if kind not in dtypes.MODEL_FLOATS:
            return f"dtype {kind} is none of float32, float16, bfloat16"
        if kind == dtypes.bfloat16 and backend.caps.compute_capability < 80:
            return "bfloat16 needs compute capability 8.0"
    return None


def _input_supports(g: Tensor, weight: Weight, dtype: np.dtype, into: Tensor | None) -> str | None:
    if into is not None and not (into.dtype == dtype and _is_dense(into)):
        return f"adding {dtype} to {into.dtype} of strides {into.data.strides}"
    if isinstance(weight, Tensor):
        return _refusal(g.backend, g.dtype, weight.dtype, dtype)
    return _refusal(g.backend, g.dtype, dtype) or form_refusal(form_of(weight))


def _weight_supports(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> str | None:
    if into is not None and not (into.dtype in (x.dtype, dtypes.float32) and _is_dense(into)):
        return f"adding to {into.dtype} of strides {into.data.strides}"
    return _refusal(g.backend, g.dtype, x.dtype, dtype)


def _is_dense(x: Tensor) -> bool:
    return x.backend.is_contiguous(x.data)


def _input_gradient(g: Tensor, weight: Weight, dtype: np.dtype, into: Tensor | None) -> Tensor:
    backend: CupyBackend = g.backend  # type: ignore[assignment]
    w = weight if isinstance(weight, Tensor) else dequantize(weight, dtype)
    sides = (_matrix(backend, g, dtype), _matrix(backend, w, dtype))
    if into is not None:
        blas.matmul(backend, *sides, add_to=into.data.reshape(-1, w.shape[1]))
        into.written()
        return into
    dx = blas.matmul(backend, *sides)
    return Tensor.wrap(dx.reshape(*g.shape[:-1], w.shape[1]), backend)


def _weight_gradient(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> Tensor:
    backend: CupyBackend = g.backend  # type: ignore[assignment]
    rows, inputs = _matrix(backend, g, x.dtype), _matrix(backend, x, x.dtype)
    if into is not None:
        blas.matmul(backend, rows.T, inputs, add_to=into.data)
        into.written()
        return into
    made = x.dtype if dtype == x.dtype else dtypes.float32  # the sums themselves
    dw = blas.matmul(backend, rows.T, inputs, made)
    return Tensor.wrap(dw if made == dtype else backend.cast(dw, dtype), backend)


def _matrix(backend: CupyBackend, x: Tensor, dtype: np.dtype) -> Any:
    """x [..., K] as [T, K] of `dtype`."""
    data = x.data if x.dtype == dtype else backend.cast(x.data, dtype)
    if data.ndim == 2:
        return data
    return backend.dense(data).reshape(math.prod(x.shape[:-1]), x.shape[-1])


KERNELS = {
    "linear_input_gradient": Kernel(_input_gradient, _input_supports),
    "linear_weight_gradient": Kernel(_weight_gradient, _weight_supports),
}
