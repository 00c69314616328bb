"""Launch of shaders/cuda/sampling/logprobs.cu."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.backends.cupy.sampling.sampling import dtype_refusal, row_defines
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


def _supports(logits: Tensor, ids: Tensor, k: int) -> str | None:
    return dtype_refusal(logits)


def _top_logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    backend: CupyBackend = logits.backend  # type: ignore[assignment]
    B, V = logits.shape
    shapes = ((B,), np.float32), ((B, k), np.int32), ((B, k), np.float32)
    made = [backend.empty(shape, np.dtype(dtype)) for shape, dtype in shapes]
    if B:
        defines = row_defines(backend, logits, B, V)
        backend.launch(
            "logprobs", "top_logprobs", (B * defines["CLUSTER"],), (defines["THREADS"],),
            [backend.dense(logits.data), backend.dense(ids.data), *made, V, k], dependent=True,
            **defines,
        )  # fmt: skip
    chosen, best, logs = (Tensor.wrap(x, backend) for x in made)
    return chosen, best, logs


KERNELS = {"top_logprobs": Kernel(_top_logprobs, _supports)}
VARIANTS = [
    *(
        Variant("logprobs", {"LOGIT": logit, "CLUSTER": cluster, "THREADS": 1024}, only="sm_90a")
        for logit, cluster in (("float", 8), ("bf16", 8), ("bf16", 2))
    ),
    *(
        Variant("logprobs", {"LOGIT": logit, "CLUSTER": 1, "THREADS": threads})
        for logit, threads in (("float", 1024), ("f16", 128), ("bf16", 1024))
    ),
]
