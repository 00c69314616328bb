"""Launches of the norm kernels; see `kernels/norm.py`."""

from __future__ import annotations

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy import jit
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.tensor import Tensor


def _supports(*args, **options) -> str | None:
    for x in args:
        if isinstance(x, Tensor) and x.dtype != dtypes.float32:
            return f"dtype {x.dtype} is not float32"
    return None


def _rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, w = backend.dense(x.data), backend.dense(weight.data)
    out = backend.empty(x.shape)
    E = x.shape[-1]
    params = [
        address(source), address(w), address(out), E, jit.float_bits(eps),
        jit.float_bits(weight_offset),
    ]  # fmt: skip
    backend.launch(
        "norm.rms_norm", params, items=x.size // max(E, 1), grain=8, reads=[source, w], writes=[out]
    )
    return Tensor.wrap(out, backend)


KERNELS = {"rms_norm": Kernel(_rms_norm, _supports)}
