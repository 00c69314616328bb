"""Launches of shaders/cuda/sampling/sampling.cu, penalties.cu and reduce.cu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_THREADS = 1024
_MOST = 1 << 18  # columns that `sample` takes


def shared_bytes(cluster: int) -> int:
    """At least the size of `struct Shared` in sampling.cu."""
    bins, warps = 1024, _THREADS // 32
    lists, sums, own = 16 * bins, 24 * bins, 12 * bins
    return lists + sums + own + 8 * (3 * warps + 3 * cluster) + 320


def _cluster(backend: CupyBackend, rows: int, V: int) -> int:
    """Blocks for each row: as many as the device runs at once, if rows are wide enough."""
    if backend.caps.compute_capability < 90 or V < 8192:
        return 1
    for cluster in (8, 4, 2):
        if rows * cluster <= backend.caps.sms:
            return cluster
    return 1


def row_defines(backend: CupyBackend, x: Tensor, rows: int, V: int) -> dict[str, Any]:
    cluster = _cluster(backend, rows, V)
    return {"LOGIT": backend.c_type(x.dtype), "CLUSTER": cluster, "THREADS": _THREADS}


def dtype_refusal(x: Tensor) -> str | None:
    if x.dtype not in dtypes.MODEL_FLOATS:
        return f"it is {x.dtype}, not float32, float16 or bfloat16"
    return None


# -- argmax --------------------------------------------------------------------------------------
def _argmax_supports(x: Tensor, axis: int) -> str | None:
    if axis != x.ndim - 1:
        return "only the last axis"
    return dtype_refusal(x)


def _argmax(x: Tensor, axis: int) -> Tensor:
    return _largest(x, 0)


def _greedy(logits: Tensor) -> Tensor:
    return _largest(logits, 1)


def _largest(x: Tensor, finite: int) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    V = x.shape[-1]
    rows = x.size // V
    out = backend.empty(x.shape[:-1], np.int32)
    defines = row_defines(backend, x, rows, V)
    if V <= 2048:
        defines["THREADS"] = 128
    backend.launch(
        "reduce", "argmax", (rows * defines["CLUSTER"],), (defines["THREADS"],),
        [backend.dense(x.data), out, V, finite], dependent=True, **defines,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


# -- draws ---------------------------------------------------------------------------------------
def _sample_supports(logits: Tensor, *rest: Tensor) -> str | None:
    if logits.shape[1] > _MOST:
        return f"{logits.shape[1]} columns are more than {_MOST}"
    return dtype_refusal(logits)


def _sample(logits, temperature, top_k, top_p, min_p, seeds, counters) -> Tensor:
    backend: CupyBackend = logits.backend
    B, V = logits.shape
    out = backend.empty((B,), np.int32)
    parts = (logits, temperature, top_k, top_p, min_p, seeds, counters)
    defines = row_defines(backend, logits, B, V)
    backend.launch(
        "sampling", "sample", (B * defines["CLUSTER"],), (_THREADS,),
        [*(backend.dense(x.data) for x in parts), out, V],
        shared_bytes=shared_bytes(defines["CLUSTER"]), dependent=True, **defines,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _filtered(logits, temperature, top_k, top_p, min_p) -> Tensor:
    backend: CupyBackend = logits.backend
    B, V = logits.shape
    out = backend.empty((B, V), np.float32)
    parts = (logits, temperature, top_k, top_p, min_p)
    defines = row_defines(backend, logits, B, V)
    backend.launch(
        "sampling", "filtered_probabilities", (B * defines["CLUSTER"],), (_THREADS,),
        [*(backend.dense(x.data) for x in parts), out, V],
        shared_bytes=shared_bytes(defines["CLUSTER"]), **defines,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


# -- the rest ------------------------------------------------------------------------------------
def _penalize_supports(logits: Tensor, *rest: Any) -> str | None:
    if logits.shape[0] > 65535:
        return f"{logits.shape[0]} rows are more than 65535"
    return dtype_refusal(logits)


def _aligned(backend: CupyBackend, x: Any, to: int) -> Any:
    """x dense, beginning at a multiple of `to` bytes."""
    x = backend.dense(x)
    return x if x.data.ptr % to == 0 else backend.copy(x)


def _penalize(logits, seen, counts, repetition, presence, frequency) -> Tensor:
    backend: CupyBackend = logits.backend
    B, V = logits.shape
    out = backend.empty((B, V), np.float32)
    args = [_aligned(backend, logits.data, 4 * logits.dtype.itemsize)]
    args += [_aligned(backend, seen.data, 4), _aligned(backend, counts.data, 16)]
    args += [backend.dense(x.data) for x in (repetition, presence, frequency)]
    backend.launch(
        "penalties", "penalize", (-(-V // 1024), B), (256,), [*args, out, V], dependent=True,
        LOGIT=backend.c_type(logits.dtype),
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _add_bias(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    backend: CupyBackend = logits.backend  # type: ignore[assignment]
    reads = [backend.dense(x.data) for x in (ids, values)]
    backend.launch(
        "penalties", "add_bias", (-(-ids.size // 128),), (128,),
        [logits.data, *reads, ids.size, ids.shape[1], logits.shape[1]], dependent=True,
        LOGIT="float",
    )  # fmt: skip


def _record_tokens(ids, seen, counts) -> None:
    backend: CupyBackend = ids.backend
    B, V = seen.shape
    backend.launch(
        "penalties", "record_tokens", (-(-B // 64),), (64,),
        [backend.dense(ids.data), seen.data, counts.data, B, V], dependent=True,
        LOGIT="float",
    )  # fmt: skip


def _philox(counters: Tensor, keys: Tensor) -> Tensor:
    backend: CupyBackend = counters.backend  # type: ignore[assignment]
    B = counters.shape[0]
    out = backend.empty((B, 4), np.uint32)
    backend.launch(
        "penalties", "philox", (-(-B // 128),), (128,),
        [backend.dense(counters.data), backend.dense(keys.data), out, B],
        LOGIT="float",
    )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {
    "argmax": Kernel(_argmax, _argmax_supports),
    "greedy": Kernel(_greedy, dtype_refusal),
    "sample": Kernel(_sample, _sample_supports),
    "filtered_probabilities": Kernel(_filtered, _sample_supports),
    "penalize": Kernel(_penalize, _penalize_supports),
    "add_bias": Kernel(_add_bias),
    "record_tokens": Kernel(_record_tokens),
    "philox": Kernel(_philox),
}
_WIDE = ("float", 8), ("bf16", 8), ("bf16", 2)
VARIANTS = [
    *(Variant("penalties", {"LOGIT": logit}) for logit in ("float", "bf16")),
    Variant("sampling", {"LOGIT": "float", "CLUSTER": 1, "THREADS": _THREADS}),
    Variant("sampling", {"LOGIT": "f16", "CLUSTER": 1, "THREADS": _THREADS}, only="sm_75"),
    *(
        Variant(family, {"LOGIT": logit, "CLUSTER": cluster, "THREADS": _THREADS}, only="sm_90a")
        for family in ("sampling", "reduce")
        for logit, cluster in _WIDE
    ),
    *(
        Variant("reduce", {"LOGIT": logit, "CLUSTER": 1, "THREADS": threads})
        for logit, threads in (("float", 1024), ("f16", 128), ("bf16", 1024))
    ),
]
