"""Launches of the norm kernels; see `kernels/rows/norm.py`."""

from __future__ import annotations

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.backends.numpy.runtime import jit
from boostr.tensor import Tensor


def _launch(
    kernel: str,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    floats: tuple[float, ...],
) -> tuple[Tensor, Tensor | None]:
    """(y, h): h only with a residual."""
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, x.data)
    parts = [None if t is None else backend.dense(t.data) for t in (residual, weight, bias)]
    y = backend.empty(x.shape)
    h = None if residual is None else backend.empty(x.shape)
    arrays: list[np.ndarray | None] = [source, *parts, y, h]
    E = x.shape[-1]
    params = [0 if a is None else address(a) for a in arrays]
    params += [E, max(inner, 1), stride, *map(jit.float_bits, floats)]
    backend.launch(
        f"norm.{kernel}", params, items=x.size // max(E, 1), grain=8,
        reads=[a for a in arrays[:4] if a is not None],
        writes=[a for a in (y, h) if a is not None], add=residual is not None,
    )  # fmt: skip
    return Tensor.wrap(y, backend), None if h is None else Tensor.wrap(h, backend)


def _rms_norm(x, weight, eps: float, weight_offset: float):
    return _launch("rms_norm", x, None, weight, None, (eps, weight_offset))[0]


def _add_rms_norm(x, residual, weight, eps: float, weight_offset: float):
    return _launch("rms_norm", x, residual, weight, None, (eps, weight_offset))


def _layer_norm(x, weight, bias, eps: float):
    return _launch("layer_norm", x, None, weight, bias, (eps,))[0]


def _add_layer_norm(x, residual, weight, bias, eps: float):
    return _launch("layer_norm", x, residual, weight, bias, (eps,))


KERNELS = {
    "rms_norm": Kernel(_rms_norm, not_float32),
    "add_rms_norm": Kernel(_add_rms_norm, not_float32),
    "layer_norm": Kernel(_layer_norm, not_float32),
    "add_layer_norm": Kernel(_add_layer_norm, not_float32),
}
