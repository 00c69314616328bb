"""Launches of the cross-entropy kernels; see `kernels/rows/loss.py`."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.backends.numpy.runtime import jit
from boostr.tensor import Tensor


def _supports(logits: Tensor, targets: Tensor) -> str | None:
    if targets.dtype not in (dtypes.int32, dtypes.int64):
        return f"targets are {targets.dtype}, not int32 or int64"
    return not_float32(logits) or ("there are no logits" if logits.size == 0 else None)


def _cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    backend: NumpyBackend = logits.backend  # type: ignore[assignment]
    T, V = logits.shape
    x, _, stride = rows(backend, logits.data)
    labels, wide = backend.dense(targets.data), targets.dtype == dtypes.int64
    losses, lse, count = backend.empty((T,)), backend.empty((T,)), backend.empty(())
    params = [address(a) for a in (x, labels, losses, lse)]
    backend.launch(
        "loss.cross_entropy", [*params, V, stride, ignore_index, jit.float_bits(smoothing)],
        items=T, grain=4, reads=[x, labels], writes=[losses, lse], wide=wide,
    )  # fmt: skip
    result = backend.empty(())
    params = [address(a) for a in (losses, labels, result, count)]
    backend.launch(
        "loss.total", [*params, T, ignore_index, int(reduction == "mean")], items=1, grain=1,
        reads=[losses, labels], writes=[result, count], wide=wide,
    )  # fmt: skip
    found = (losses if reduction == "none" else result, lse, count)
    return tuple(Tensor.wrap(a, backend) for a in found)  # type: ignore[return-value]


def _backward(
    g: Tensor, lse: Tensor, count: Tensor, logits: Tensor, targets: Tensor, ignore_index: int,
    smoothing: float, reduction: str, dtype: np.dtype,
) -> Tensor:  # fmt: skip
    backend: NumpyBackend = logits.backend  # type: ignore[assignment]
    T, V = logits.shape
    x, _, stride = rows(backend, logits.data)
    slopes, logs, labels, counted = (backend.dense(t.data) for t in (g, lse, targets, count))
    dx = backend.empty((T, V))
    params = [address(slopes), int(g.ndim == 1), address(logs)]
    params += [address(counted) if reduction == "mean" else 0]
    params += [*(address(a) for a in (x, labels, dx)), V, stride, ignore_index]
    backend.launch(
        "loss.gradient", [*params, jit.float_bits(smoothing)], items=T, grain=4,
        reads=[slopes, logs, labels, counted, x], writes=[dx], wide=targets.dtype == dtypes.int64,
    )  # fmt: skip
    return Tensor.wrap(dx if dtype == dx.dtype else backend.cast(dx, dtype), backend)


KERNELS = {
    "cross_entropy": Kernel(
        _cross_entropy, lambda logits, targets, *rest: _supports(logits, targets)
    ),
    "cross_entropy_backward": Kernel(
        _backward,
        lambda g, lse, count, logits, targets, *rest: (
            not_float32(g, lse) or _supports(logits, targets)
        ),
    ),
}
