"""linear: few rows of x go to the GEMV (`gemv.py`), the rest to tiled products (`gemm.py`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.wgpu import gemm, gemv
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Weight = Tensor | QuantizedTensor
FEW = gemv.MOST_ROWS  # rows of x that the GEMV takes


def _linear(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None,
    dtype: np.dtype | None = None,
) -> Tensor:  # fmt: skip
    backend: Any = x.backend
    N, K = weight.shape
    lead, rows = x.shape[:-1], math.prod(x.shape[:-1])
    wanted = x.dtype if dtype is None else dtype
    if rows == 0 or N == 0:
        return Tensor.wrap(backend.empty((*lead, N), wanted), backend)
    own_bias = None if bias is None else bias.data
    if rows <= FEW:
        flat = backend.reshape(x.data, (rows, K))
        rest = None if residual is None else backend.reshape(residual.data, (rows, N))
        y = gemv.gemv(backend, flat, weight, own_bias, rest, wanted)
        return Tensor.wrap(backend.reshape(y, (*lead, N)), backend)
    rest = None if residual is None else residual.data
    y = gemm.linear(backend, x.data, weight, own_bias, rest, wanted)
    return Tensor.wrap(backend.reshape(y, (*lead, N)), backend)


KERNELS = {"linear": Kernel(_linear, gemm.supports)}
