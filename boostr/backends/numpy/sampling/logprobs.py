"""Launch of the kernel of log probabilities; see `kernels/sampling/logprobs.py`."""

from __future__ import annotations

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.rows import rows
from boostr.tensor import Tensor

_NAMES = {dtypes.float32: "f32", dtypes.bfloat16: "bf16", dtypes.float16: "f16"}


def _supports(logits: Tensor, ids: Tensor, k: int) -> str | None:
    if logits.dtype not in _NAMES:
        return f"dtype {logits.dtype} is not float32, float16 or bfloat16"
    return None


def _top_logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    backend: NumpyBackend = logits.backend  # type: ignore[assignment]
    source, _, stride = rows(backend, logits.data)
    tokens, (B, V) = backend.dense(ids.data), logits.shape
    made = backend.empty((B,)), backend.empty((B, k), "int32"), backend.empty((B, k))
    params = [address(source), stride, V, address(tokens), k, *map(address, made)]
    backend.launch(
        "logprobs.top_logprobs", params, items=B, grain=1, reads=[source, tokens], writes=made,
        logit=_NAMES[logits.dtype],
    )  # fmt: skip
    chosen, best, logs = (Tensor.wrap(x, backend) for x in made)
    return chosen, best, logs


KERNELS = {"top_logprobs": Kernel(_top_logprobs, _supports)}
