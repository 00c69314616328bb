"""linear: few rows of x go to the GEMV (`gemv.py`), the rest to tiled products (`gemm.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.wgpu.products import gemm, gemv
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

Weight = Tensor | QuantizedTensor
_FEW_ON_SOFTWARE = 2  # compiling kernels for more takes a CPU minutes


def few(backend: WgpuBackend) -> int:
    """The most rows of x that the GEMV takes."""
    return _FEW_ON_SOFTWARE if backend.caps.kind == "software" else gemv.MOST_ROWS


def _linear(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None,
    dtype: np.dtype | None = None, rounded: bool = False,
) -> Tensor:  # fmt: skip
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    N, K = weight.shape
    lead, rows = x.shape[:-1], math.prod(x.shape[:-1])
    wanted = x.dtype if dtype is None else dtype
    if rows == 0 or N == 0:
        return Tensor.wrap(backend.empty((*lead, N), wanted), backend)
    own_bias = None if bias is None else bias.data
    if rows <= few(backend):
        flat = backend.reshape(x.data, (rows, K))
        rest = None if residual is None else backend.reshape(residual.data, (rows, N))
        y = gemv.gemv(backend, flat, weight, own_bias, rest, wanted)
        return Tensor.wrap(backend.reshape(y, (*lead, N)), backend)
    rest = None if residual is None else residual.data
    y = gemm.linear(backend, x.data, weight, own_bias, rest, wanted)
    return Tensor.wrap(backend.reshape(y, (*lead, N)), backend)


def joined(backend: WgpuBackend, weights: Sequence[Weight]) -> Weight | None:
    """Weights that are stored alike and lie end to end in one buffer, as one; None if not so."""
    first, K = weights[0], weights[0].shape[1]
    if len({w.dtype if isinstance(w, Tensor) else w.scheme for w in weights}) > 1:
        return None
    made = {}
    for name in [""] if isinstance(first, Tensor) else first.parts:
        arrays = [(w if isinstance(w, Tensor) else w.parts[name]).data for w in weights]
        end = arrays[0].offset
        for array in arrays:
            if array.buffer is not arrays[0].buffer or array.offset != end or not array.contiguous:
                return None
            end += array.size
        rows = sum(len(a) for a in arrays)
        made[name] = Tensor.wrap(arrays[0].view(shape=(rows, *arrays[0].shape[1:])), backend)
    if isinstance(first, Tensor):
        return made[""]
    return QuantizedTensor(first.scheme, (sum(w.shape[0] for w in weights), K), made)


KERNELS = {"linear": Kernel(_linear, gemm.supports)}
