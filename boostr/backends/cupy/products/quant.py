"""Launches of the quantization kernels; see `shaders/cuda/products/quant.cu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.embedding import decode_run, packed_parts, packed_supports
from boostr.backends.cupy.rows.rows import power_of_two, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor


def _quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    backend: Any = w.backend
    source = backend.dense(w.data)
    N, K = w.shape
    G = -(-K // group)
    values, scales = backend.empty((N, K), "int8"), backend.empty((N, G), "float32")
    run = run_length((K, group), source)
    lanes = min(32, max(4, power_of_two(-(-group // run)))) if group <= 512 else 256
    backend.launch(
        "quant", "quantize", (-(-N * G * lanes // 256),), (256,),
        [source, values, scales, np.int64(N * G), K, G, group], dependent=True,
        FORM=-1, W="float", X=backend.c_type(w.dtype), RUN=run, LANES=lanes,
    )  # fmt: skip
    return Tensor.wrap(values, backend), Tensor.wrap(scales, backend)


def _dequantize(w: QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: Any = w.backend
    macros, table, scales, G, shift = packed_parts(w)
    N, K = w.shape
    out = backend.empty((N, K), dtype)
    if out.size:
        run = decode_run(macros["FORM"], table, K)
        chunks = -(-K // (256 * run))
        backend.launch(
            "quant", "dequantize", (N * chunks,), (256,),
            [table, scales, out, K, G, shift, chunks], dependent=True,
            O=backend.c_type(dtype), RUN=run, **macros,
        )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {
    "quantize": Kernel(_quantize, refusals.quantize),
    "dequantize": Kernel(_dequantize, packed_supports),
}

VARIANTS = [
    *(
        Variant("quant", {"FORM": -1, "W": "float", "X": x, "RUN": run, "LANES": lanes})
        for x, run, lanes in (
            ("bf16", 8, 8), ("bf16", 8, 256), ("float", 4, 32), ("float", 1, 256), ("f16", 1, 32),
        )
    ),
    *(
        Variant("quant", {"FORM": form, "W": "float", "O": out, "RUN": run})
        for form, out, run in (
            (1, "float", 8), (1, "bf16", 1), (2, "bf16", 8), (3, "f16", 8),
        )
    ),
]  # fmt: skip
