"""Launches of the kernels that choose tokens; see `kernels/sampling.py`."""

from __future__ import annotations

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows import not_float32, rows
from boostr.tensor import Tensor


def _argmax_supports(x: Tensor, axis: int) -> str | None:
    return not_float32(x) or (None if axis == x.ndim - 1 else f"axis {axis} is not the last")


def _argmax(x: Tensor, axis: int) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, x.data)
    out = backend.empty(x.shape[:-1], "int32")
    V = x.shape[-1]
    params = [address(source), address(out), V, max(inner, 1), stride]
    backend.launch(
        "sampling.argmax", params, items=out.size, grain=max(1, 4096 // V), reads=[source],
        writes=[out],
    )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {"argmax": Kernel(_argmax, _argmax_supports)}
