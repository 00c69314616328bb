"""Launches of shaders/cuda/rows/loss.cu: cross entropy and its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_TARGETS = {dtypes.int32: "int", dtypes.int64: "i64"}


def _defines(backend: CupyBackend, logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """The macros for these inputs."""
    wide = logits.shape[1] > 8192
    return {
        "LOGIT": backend.c_type(logits.dtype),
        "TARGET": _TARGETS[targets.dtype],
        "THREADS": 512 if wide else 128,
        "OUT": backend.c_type(logits.dtype),
        "UNROLL": 4,
    }


def _rows(backend: CupyBackend, x: Any) -> tuple[Any, int]:
    """x [T, V] with neighbours in a row side by side, and the elements from a row to the next."""
    if x.shape[0] > 1 and x.strides[1] == x.itemsize and x.strides[0] >= 0:
        return x, x.strides[0] // x.itemsize
    return backend.dense(x), x.shape[1]


def _supports(logits: Tensor, targets: Tensor) -> str | None:
    if logits.dtype not in dtypes.MODEL_FLOATS:
        return f"logits are {logits.dtype}, not float32, float16 or bfloat16"
    if targets.dtype not in _TARGETS:
        return f"targets are {targets.dtype}, not int32 or int64"
    return "there are no rows" if logits.size == 0 else None


def _cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    backend: CupyBackend = logits.backend  # type: ignore[assignment]
    T, V = logits.shape
    x, stride = _rows(backend, logits.data)
    labels = backend.dense(targets.data)
    defines = _defines(backend, logits, targets)
    losses, lse = backend.empty((T,), np.float32), backend.empty((T,), np.float32)
    rows = backend.empty((), np.float32)
    backend.launch(
        "loss", "cross_entropy", (T,), (defines["THREADS"],),
        [x, labels, losses, lse, np.int64(stride), V, np.int64(ignore_index), float(smoothing)],
        **defines,
    )  # fmt: skip
    result = losses
    if reduction != "none":
        result = backend.empty((), np.float32)
        backend.launch(
            "loss", "reduce_losses", (1,), (1024,),
            [losses, labels, result, rows, T, np.int64(ignore_index), int(reduction == "mean")],
            dependent=True, **defines,
        )  # fmt: skip
    return tuple(Tensor.wrap(a, backend) for a in (result, lse, rows))  # type: ignore[return-value]


def _supports_forward(logits, targets, ignore_index, smoothing, reduction) -> str | None:
    return _supports(logits, targets)


def _backward(
    g: Tensor,
    lse: Tensor,
    rows: Tensor,
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    smoothing: float,
    reduction: str,
    dtype: np.dtype,
) -> Tensor:
    backend: CupyBackend = logits.backend  # type: ignore[assignment]
    T, V = logits.shape
    x, stride = _rows(backend, logits.data)
    gradient, step = g.data, 0
    if g.ndim:
        step = gradient.strides[0] // 4
        if step not in (0, 1):
            gradient, step = backend.dense(gradient), 1
    dx = backend.empty((T, V), dtype)
    defines = {**_defines(backend, logits, targets), "OUT": backend.c_type(dtype)}
    backend.launch(
        "loss", "cross_entropy_backward", (T,), (defines["THREADS"],),
        [gradient, lse.data, rows.data if reduction == "mean" else None, x,
         backend.dense(targets.data), dx, np.int64(stride), V, np.int64(ignore_index),
         float(smoothing), step],
        **defines,
    )  # fmt: skip
    return Tensor.wrap(dx, backend)


def _supports_backward(
    g, lse, rows, logits, targets, ignore_index, smoothing, reduction, dtype
) -> str | None:
    if dtype not in dtypes.MODEL_FLOATS or dtype.itemsize > logits.dtype.itemsize:
        return f"a gradient of {dtype} for logits of {logits.dtype}"
    if g.dtype != dtypes.float32 or lse.dtype != dtypes.float32:
        return f"the gradient is {g.dtype}, not float32"
    return _supports(logits, targets)


KERNELS = {
    "cross_entropy": Kernel(_cross_entropy, _supports_forward),
    "cross_entropy_backward": Kernel(_backward, _supports_backward),
}
VARIANTS = [
    Variant("loss", {"LOGIT": logit, "TARGET": target, "THREADS": threads, "OUT": out, "UNROLL": 4})
    for logit, target, out in (
        ("float", "i64", "float"),
        ("float", "int", "bf16"),
        ("f16", "int", "f16"),
        ("bf16", "int", "bf16"),
        ("bf16", "i64", "bf16"),
    )
    for threads in (128, 512)
]
