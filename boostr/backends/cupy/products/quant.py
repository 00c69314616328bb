"""Launches of the quantization kernels; see `shaders/cuda/products/quant.cu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.products.stored import SNIPPETS, Stored, form_macros
from boostr.backends.cupy.rows.embedding import packed_supports
from boostr.backends.cupy.rows.rows import power_of_two, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.forms import scheme_form
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


def _quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    backend: CupyBackend = w.backend  # type: ignore[assignment]
    source = backend.dense(w.data)
    N, K = w.shape
    G = -(-K // group)
    values, scales = backend.empty((N, K), "int8"), backend.empty((N, G), "float32")
    run = run_length((K, group), source)
    lanes = min(32, max(4, power_of_two(-(-group // run)))) if group <= 512 else 256
    backend.launch(
        "quant", "quantize", (-(-N * G * lanes // 256),), (256,),
        [source, values, scales, np.int64(N * G), K, G, group], dependent=True,
        X=backend.c_type(w.dtype), RUN=run, LANES=lanes,
    )  # fmt: skip
    return Tensor.wrap(values, backend), Tensor.wrap(scales, backend)


def dequantize(w: QuantizedTensor, dtype: np.dtype) -> Tensor:
    """The weight as floats of `dtype`."""
    backend: CupyBackend = w.backend  # type: ignore[assignment]
    flat = Stored.of(w, backend)
    out = backend.empty(w.shape, dtype)
    if out.size:
        run = 8 if flat.in_eights else 1
        chunks = -(-flat.K // (256 * run))
        backend.launch(
            "quant", "dequantize", (flat.N * chunks,), (256,), [*flat.planes, out, flat.K, chunks],
            dependent=True, O=backend.c_type(dtype), RUN=run, **form_macros(flat.form),
        )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {
    "quantize": Kernel(_quantize, refusals.quantize),
    "dequantize": Kernel(dequantize, packed_supports),
}

VARIANTS = [
    *(
        Variant("quant", {"X": x, "RUN": run, "LANES": lanes})
        for x, run, lanes in (
            ("bf16", 8, 8), ("bf16", 8, 256), ("float", 4, 32), ("float", 1, 256), ("f16", 1, 32),
        )
    ),
    *(
        Variant("quant", {**form_macros(scheme_form(SCHEMES[scheme])), "O": out, "RUN": run})
        for scheme, out, run in (
            ("int8-g32", "float", 8), ("int8", "bf16", 1), ("q8_0", "bf16", 8), ("q4_0", "f16", 8),
            ("q4_1", "f16", 8), ("q6_k", "float", 8), ("q6_k", "float", 1),
        )
    ),
    *(
        Variant("quant", {**form_macros(form), "O": "bf16", "RUN": 8 if form.offsets else 1})
        for form in SNIPPETS.values()
    ),
]  # fmt: skip
