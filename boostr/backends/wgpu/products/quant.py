"""Launches of the quantization kernels; see `quant.wgsl` and `embedding.wgsl`, whose
rows in order are a packed weight read back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.products.planes import refusal
from boostr.backends.wgpu.rows import embedding
from boostr.backends.wgpu.rows.rows import parts, power_of_two, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


def _quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    backend: WgpuBackend = w.backend  # type: ignore[assignment]
    source = backend.dense(w.data)
    N, K = w.shape
    values, scales = backend.empty((N, K), "int8"), backend.empty((N, -(-K // group)), "float32")
    if values.size:
        for piece in parts(backend, source, values, scales):
            _quantize_part(backend, group, *piece)
    return Tensor.wrap(values, backend), Tensor.wrap(scales, backend)


def _quantize_part(backend: WgpuBackend, group: int, w: Any, values: Any, scales: Any) -> None:
    K, G = w.shape[1], scales.shape[1]
    team = min(256, power_of_two(-(-min(group, K) // 4)))
    # outputs begin where their pieces of whole words do
    out, first = _from_start(backend, scales), [K, G, min(group, K), backend.offset(w)]
    backend.launch(
        "quant", "quantize", -(-scales.size * team // 256), [w], [out], [scales.size, *first],
        STEP="scales", X=type_of(w), TEAM=team,
    )  # fmt: skip
    result = _from_start(backend, values)
    backend.launch(
        "quant", "quantize", -(-values.size // 1024), [w, out], [result], [values.size, *first],
        STEP="values", X=type_of(w), TEAM=1,
    )  # fmt: skip
    for made, wanted in ((out, scales), (result, values)):
        if made is not wanted:
            backend.assign(wanted, made)


def _from_start(backend: WgpuBackend, x: Any) -> Any:
    """x, or an array like it that begins where its binding does."""
    return x if backend.offset(x) == 0 else backend.empty(x.shape, x.dtype)


def dequantize(w: QuantizedTensor, dtype: np.dtype) -> Tensor:
    """The weight as floats of `dtype`."""
    backend: WgpuBackend = w.backend  # type: ignore[assignment]
    *lead, K = w.shape
    rows = math.prod(lead)
    flat = QuantizedTensor(
        w.scheme, (rows, K), {n: part.reshape(rows, part.shape[-1]) for n, part in w.parts.items()}
    )
    ids = Tensor.wrap(backend.arange(0, rows, 1, np.dtype(np.int32)), backend)
    return embedding.KERNELS["embedding"].run(ids, flat, dtype).reshape(w.shape)


def _dequantize_supports(w: QuantizedTensor, dtype: np.dtype) -> str | None:
    if dtype not in dtypes.MODEL_FLOATS:
        return f"dtype {dtype} of the result"
    return refusal(w) if w.shape[-1] else "the weight has no inputs"


KERNELS = {
    "quantize": Kernel(_quantize, refusals.quantize),
    "dequantize": Kernel(dequantize, _dequantize_supports),
}
VARIANTS = [
    *(
        Variant("quant", {"STEP": "scales", "X": x, "TEAM": team})
        for x, team in (("f32", 8), ("bf16", 256), ("f16", 1))
    ),
    *(Variant("quant", {"STEP": "values", "X": x, "TEAM": 1}) for x in ("f32", "bf16")),
]
