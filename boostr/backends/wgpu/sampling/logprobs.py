"""Launch of shaders/wgsl/sampling/logprobs.wgsl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.wgpu.sampling.sampling import reading, refusal, row_threads, variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


def _supports(logits: Tensor, ids: Tensor, k: int) -> str | None:
    return refusal(logits)


def _top_logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    backend: WgpuBackend = logits.backend  # type: ignore[assignment]
    B, V = logits.shape
    shapes = ((B,), np.float32), ((B, k), np.int32), ((B, k), np.float32)
    made = [backend.empty(shape, np.dtype(dtype)) for shape, dtype in shapes]
    if B:
        reads = [backend.dense(x.data) for x in (logits, ids)]
        values = reading(backend, reads[0], row_threads(backend.caps, V))
        backend.launch(
            "logprobs", "top_logprobs", B, reads, made if k else made[:1],
            [B, V, *map(backend.offset, reads), k], **values, RANKED=bool(k),
        )  # fmt: skip
    chosen, best, logs = (Tensor.wrap(x, backend) for x in made)
    return chosen, best, logs


KERNELS = {"top_logprobs": Kernel(_top_logprobs, _supports)}
VARIANTS = [
    variant("logprobs", "f32", True, True, 1024, RANKED=True),
    variant("logprobs", "bf16", False, True, 256, RANKED=True),
    variant("logprobs", "f16", False, False, 64, RANKED=False),
    variant("logprobs", "f32", False, False, 256, RANKED=True),
]
