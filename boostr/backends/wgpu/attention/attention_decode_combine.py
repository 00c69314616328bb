"""Joining the splits of `attention_decode`, and of prompts whose keys several workgroups share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.rows.rows import power_of_two
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


def combine(
    backend: WgpuBackend, parts: Any, Dv: int, sinks: Any, cu_seqlens_q: Any, dtype: np.dtype
) -> tuple[Any, Any]:
    """out [T, H, Dv] in `dtype` and lse float32 [T, H] of what `partials` gave."""
    T, H, S, _ = parts.shape
    wanted = dtypes.float32 if Dv % 2 else dtype
    out, lse = backend.empty((T, H, Dv), wanted), backend.empty((T, H), dtypes.float32)
    if out.size:
        reads, firsts = [parts], [0, 0]
        if sinks is not None:
            reads += [sinks, cu_seqlens_q]
            firsts = [backend.offset(cu_seqlens_q), backend.offset(sinks)]
        values = _combine_values(name_of(wanted), Dv, S, sinks is not None)
        backend.launch(
            "attention_decode_combine", "attention_combine", T * H, reads, [out, lse],
            [T * H, H, S, cu_seqlens_q.size - 1, *firsts], **values,
        )  # fmt: skip
    return (out if wanted == dtype else backend.cast(out, dtype)), lse


def _combine_values(out: str, Dv: int, splits: int, sinks: bool) -> dict[str, Any]:
    columns = power_of_two(-(-Dv // 4))
    threads = max(columns, min(256, columns * power_of_two(-(-splits // 4))))
    return {"OUT": out, "DV": Dv, "COLUMNS": columns, "THREADS": threads, "SINKS": sinks}


VARIANTS = [
    Variant("attention_decode_combine", _combine_values(*values))
    for values in (("bf16", 64, 8, False), ("f32", 7, 1, True), ("f16", 250, 33, True))
]
