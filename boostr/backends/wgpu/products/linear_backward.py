"""Gradients of linear: dx = g · weight, dweight = gᵀ · x, by the products of `gemm.py` with float32
sums, which read operands of any float type and strides: on tensor cores, too, where there are any.
Packed weights are decoded to x's dtype first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.products import gemm
from boostr.backends.wgpu.products.planes import Weight, refusal
from boostr.backends.wgpu.products.quant import dequantize
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


def _refusal(*kinds: np.dtype) -> str | None:
    wrong = next((kind for kind in kinds if kind not in dtypes.MODEL_FLOATS), None)
    return None if wrong is None else f"dtype {wrong} is none of float32, float16, bfloat16"


def _input_supports(g: Tensor, weight: Weight, dtype: np.dtype, into: Tensor | None) -> str | None:
    if isinstance(weight, Tensor):
        return _refusal(g.dtype, weight.dtype, dtype)
    return _refusal(g.dtype, dtype) or refusal(weight)


def _weight_supports(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> str | None:
    return _refusal(g.dtype, x.dtype, dtype)


def _input_gradient(g: Tensor, weight: Weight, dtype: np.dtype, into: Tensor | None) -> Tensor:
    backend: WgpuBackend = g.backend  # type: ignore[assignment]
    w = weight if isinstance(weight, Tensor) else dequantize(weight, dtype)
    made = gemm.matmul(backend, _matrix(backend, g), w.data, dtype)
    dx = Tensor.wrap(backend.reshape(made, (*g.shape[:-1], w.shape[1])), backend)
    return dx if into is None else into.assign(into + dx)


def _weight_gradient(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> Tensor:
    backend: WgpuBackend = g.backend  # type: ignore[assignment]
    rows = backend.permute(_matrix(backend, g), (1, 0))
    dw = Tensor.wrap(gemm.matmul(backend, rows, _matrix(backend, x), dtype), backend)
    return dw if into is None else into.assign(into + dw)


def _matrix(backend: WgpuBackend, x: Tensor) -> GpuArray:
    """x [..., K] as [T, K]."""
    return backend.reshape(x.data, (math.prod(x.shape[:-1]), x.shape[-1]))


KERNELS = {
    "linear_input_gradient": Kernel(_input_gradient, _input_supports),
    "linear_weight_gradient": Kernel(_weight_gradient, _weight_supports),
}
