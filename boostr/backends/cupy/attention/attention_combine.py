"""Joining the splits of `attention_decode`, and of prompts whose keys several blocks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.cupy.runtime.kernels import Variant

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


def combine(
    backend: CupyBackend,
    partial_out: Any,
    partial_ms: Any,
    sinks: Any,
    cu_seqlens_q: Any,
    dtype: np.dtype,
) -> tuple[Any, Any]:
    """out [T, H, Dv] in `dtype` and lse float32 [T, H] of what `partials` gave."""
    T, H, S, Dv = partial_out.shape
    out, lse = backend.empty((T, H, Dv), dtype), backend.empty((T, H))
    args = (partial_out, partial_ms, sinks, cu_seqlens_q, out, lse, H, S, cu_seqlens_q.size - 1)
    if out.size:
        backend.launch(
            "attention_combine", "attention_combine", (T * H,), (256,), args, dependent=True,
            Q_TYPE=backend.c_type(dtype), V_DIM=Dv,
        )  # fmt: skip
    return out, lse


VARIANTS = [Variant("attention_combine", {"Q_TYPE": "bf16", "V_DIM": 64})]
