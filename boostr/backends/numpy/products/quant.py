"""Launches of the quantization kernels; see `kernels/products/quant.py`."""

from __future__ import annotations

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.embedding import FORMS, packed_form
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor


def _quantize_supports(w: Tensor, group: int) -> str | None:
    if str(w.dtype) not in FORMS:
        return f"dtype {w.dtype} of the weight"
    return None if w.shape[1] else "the weight has no inputs"


def _quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    backend: NumpyBackend = w.backend  # type: ignore[assignment]
    source = backend.dense(w.data)
    N, K = w.shape
    values, scales = backend.empty((N, K), "int8"), backend.empty((N, -(-K // group)))
    params = [*map(address, (source, values, scales)), K, group]
    backend.launch(
        "quant.quantize", params, items=N, grain=8, reads=[source], writes=[values, scales],
        form=FORMS[str(w.dtype)],
    )  # fmt: skip
    return Tensor.wrap(values, backend), Tensor.wrap(scales, backend)


def _dequantize_supports(w: QuantizedTensor, dtype: np.dtype) -> str | None:
    if all(part.data.flags.c_contiguous for part in w.parts.values()):
        return None
    return "a part is not dense"


def _dequantize(w: QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: NumpyBackend = w.backend  # type: ignore[assignment]
    form, table, scales, shift = packed_form(w)
    N, K = w.shape
    out = backend.empty((N, K))
    params = [address(table), 0 if scales is None else address(scales), address(out), K]
    params += [table.nbytes // max(N, 1), 0 if scales is None else scales.shape[1], shift]
    backend.launch(
        "quant.dequantize", params, items=N, grain=8,
        reads=[table] if scales is None else [table, scales], writes=[out], form=form,
    )  # fmt: skip
    made = Tensor.wrap(out, backend)
    return made if dtype == out.dtype else made.to(dtype)


KERNELS = {
    "quantize": Kernel(_quantize, _quantize_supports),
    "dequantize": Kernel(_dequantize, _dequantize_supports),
}
