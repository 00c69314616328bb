"""Launches of shaders/wgsl/rows/loss.wgsl: cross entropy and its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import parts, power_of_two, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import NAMES
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_FEW = 256  # rows that leave a large GPU idle, so that each is split
_FINISH = 64  # splits at most: threads of the workgroup that puts them together


def _rows(backend: WgpuBackend, x: Any) -> tuple[Any, int]:
    """x [T, V] with neighbours in a row side by side, and the elements from a row to the next."""
    if x.shape[0] > 1 and (x.strides[1] == 1 or x.shape[1] == 1) and x.strides[0] >= 0:
        return x, int(x.strides[0])
    return backend.dense(x), x.shape[1]


def _supports(logits: Tensor, targets: Tensor, ignore_index: int) -> str | None:
    if logits.dtype not in dtypes.MODEL_FLOATS:
        return f"logits are {logits.dtype}, not float32, float16 or bfloat16"
    if targets.dtype not in NAMES or targets.dtype.kind not in "iu":
        return f"targets are {targets.dtype}"
    if not -(2**31) <= ignore_index < 2**31:
        return f"ignore_index {ignore_index} is not an int32"
    return "there are no rows" if logits.size == 0 else None


def _plan(backend: WgpuBackend, T: int, V: int, item: int) -> tuple[int, int, int]:
    """(elements of a run, threads of a workgroup, workgroups of a row)."""
    run = 16 // item
    widest = min(64 if backend.caps.kind == "software" else 512, backend.caps.workgroup_threads)
    lanes = min(widest, max(32, power_of_two(-(-V // (run * 4)))))
    splits = min(_FINISH, 2 * _FEW // T, V // (run * 4 * lanes)) if T < _FEW else 1
    return run, lanes, max(1, splits)


def _cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    backend: WgpuBackend = logits.backend  # type: ignore[assignment]
    T = logits.shape[0]
    labels = backend.dense(targets.data)
    losses, lse = (backend.empty((T,), np.float32) for _ in range(2))
    for piece in parts(backend, logits.data, labels, losses, lse):
        _forward(backend, piece, ignore_index, smoothing)
    result, rows = losses, backend.empty((), np.float32)
    if reduction != "none":
        result = backend.empty((), np.float32)
        lanes = min(64 if backend.caps.kind == "software" else 1024, backend.caps.workgroup_threads)
        backend.launch(
            "loss", "reduce", 1, [losses, labels], [result, rows],
            (T, 0, 0, 0, backend.offset(labels), 0, 0, ignore_index, 0.0, 0, 0),
            ENTRY="reduce", X="f32", RUN=4, TARGET=type_of(labels), LANES=lanes,
            MEAN=int(reduction == "mean"),
        )  # fmt: skip
    return tuple(Tensor.wrap(a, backend) for a in (result, lse, rows))  # type: ignore[return-value]


def _forward(backend: WgpuBackend, arrays: list[Any], ignore_index: int, smoothing: float) -> None:
    """losses and lse of some rows."""
    logits, labels, losses, lse = arrays
    x, stride = _rows(backend, logits)
    T, V = x.shape
    run, lanes, splits = _plan(backend, T, V, x.dtype.itemsize)
    share = -(-(-(-V // run) + 1) // splits)  # a row that begins within a run has one more
    values = {"X": type_of(x), "RUN": run, "TARGET": type_of(labels)}
    params = (T, V, stride, *map(backend.offset, (x, labels, losses, lse)), ignore_index,
              float(smoothing), splits, share)  # fmt: skip
    rest, made = [x, labels], [losses, lse]
    if splits == 1:
        backend.launch("loss", "cross_entropy", T, [x, *rest], made, params,
                       ENTRY="cross_entropy", LANES=lanes, SPLIT=0, **values)  # fmt: skip
        return
    partial = backend.empty((T, splits, 4), np.float32)
    backend.launch("loss", "cross_entropy", T * splits, [x], [partial], params,
                   ENTRY="cross_entropy", LANES=lanes, SPLIT=1, **values)  # fmt: skip
    backend.launch("loss", "finish", T, [partial, *rest], made, params, ENTRY="finish",
                   LANES=_FINISH, **values)  # fmt: skip


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
    backend: WgpuBackend = logits.backend  # type: ignore[assignment]
    gradient, step = g.data, 0
    if g.ndim:
        step = gradient.strides[0] if g.size > 1 else 0
        if step < 0:
            gradient, step = backend.dense(gradient), 1
    dx = backend.empty(logits.shape, logits.dtype)
    labels, lses = backend.dense(targets.data), backend.dense(lse.data)
    first = 0
    for x, ids, part, out in parts(backend, logits.data, labels, lses, dx):
        x, stride = _rows(backend, x)
        T, V = x.shape
        places = [stride, backend.offset(x), backend.offset(out)]
        run, spans = _runs(V, places, x.dtype.itemsize)
        count = -(-out.size // run) if run > 1 else -(-out.size * out.dtype.itemsize // 4)
        at = [backend.offset(a) for a in (ids, part)]
        at += [backend.offset(gradient) + first * step, step, backend.offset(rows.data)]
        backend.launch(
            "loss", "cross_entropy_backward", -(-count // 256),
            [x, ids, part, gradient, rows.data], [out],
            (T, V, *places[:2], *at, places[2], ignore_index, float(smoothing)),
            ENTRY="cross_entropy_backward", X=type_of(x), TARGET=type_of(ids), RUN=run,
            MEAN=int(reduction == "mean"), SPANS=int(spans),
        )  # fmt: skip
        first += T
    return Tensor.wrap(dx if dtype == logits.dtype else backend.cast(dx, dtype), backend)


def _runs(V: int, places: list[int], item: int) -> tuple[int, bool]:
    """(elements that a thread of the gradient has, whether they may end a row and begin the next),
    for rows of V; places: the step from row to row, where x begins, where dx begins."""
    stride, *starts = places
    for run in (8, 4) if item == 2 else (4,):
        if not any(start % run for start in starts):
            if V % run == stride % run == 0:
                return run, False
            if V == stride >= run:
                return run, True
    return 1, False


def _supports_forward(logits, targets, ignore_index, smoothing, reduction) -> str | None:
    return _supports(logits, targets, ignore_index)


def _supports_backward(
    g, lse, rows, logits, targets, ignore_index, smoothing, reduction, dtype
) -> str | None:
    if g.dtype != dtypes.float32 or lse.dtype != dtypes.float32:
        return f"the gradient is {g.dtype}, not float32"
    return _supports(logits, targets, ignore_index)


KERNELS = {
    "cross_entropy": Kernel(_cross_entropy, _supports_forward),
    "cross_entropy_backward": Kernel(_backward, _supports_backward),
}
VARIANTS = [
    *(
        Variant("loss", {"ENTRY": "cross_entropy", "X": x, "TARGET": "i32", "RUN": run,
                         "LANES": lanes, "SPLIT": split})
        for x, run, lanes, split in (
            ("f32", 4, 256, 0), ("bf16", 8, 256, 1), ("f16", 8, 32, 0), ("f32", 4, 64, 1),
        )
    ),
    *(
        Variant("loss", {"ENTRY": "finish", "X": x, "TARGET": "u8", "RUN": run, "LANES": _FINISH})
        for x, run in (("f32", 4), ("bf16", 8))
    ),
    *(
        Variant("loss", {"ENTRY": "reduce", "X": "f32", "TARGET": "i32", "RUN": 4, "LANES": 256,
                         "MEAN": mean})
        for mean in (0, 1)
    ),
    *(
        Variant("loss", {"ENTRY": "cross_entropy_backward", "X": x, "TARGET": "i32", "RUN": run,
                         "MEAN": mean, "SPANS": spans})
        for x, run, mean, spans in (
            ("f32", 4, 1, 0), ("bf16", 8, 0, 0), ("f16", 1, 1, 0), ("f32", 1, 0, 0),
            ("bf16", 8, 1, 1), ("f32", 4, 0, 1),
        )
    ),
]  # fmt: skip
