"""Launch of the embedding kernel; see `kernels/rows/embedding.py`."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

FORMS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def _supports(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> str | None:
    if dtype != dtypes.float32:
        return f"dtype {dtype} of the result is not float32"
    if ids.dtype not in (dtypes.int32, dtypes.int64):
        return f"ids are {ids.dtype}, not int32 or int64"
    if isinstance(weight, Tensor):
        if str(weight.dtype) not in FORMS:
            return f"dtype {weight.dtype} of the table"
        return None if weight.data.flags.c_contiguous else "the table is not dense"
    if all(part.data.flags.c_contiguous for part in weight.parts.values()):
        return None
    return "the table is not dense"


def packed_form(weight: Tensor | QuantizedTensor) -> tuple[str, np.ndarray, np.ndarray | None, int]:
    """(form of `kernels/products/weights.py`, rows, scales, log2 of blocks that share a scale)."""
    if isinstance(weight, Tensor):
        return FORMS[str(weight.dtype)], weight.data, None, 0
    scheme = weight.scheme
    if scheme.is_block:
        return scheme.name, weight.parts["blocks"].data, None, 0
    scales = weight.parts["scales"].data
    if not scheme.group_size:
        return "i8", weight.parts["values"].data, scales, 0
    shift = (scheme.group_size // 32).bit_length() - 1
    return "i8g", weight.parts["values"].data, scales, shift


def _embedding(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: NumpyBackend = ids.backend  # type: ignore[assignment]
    form, table, scales, shift = packed_form(weight)
    tokens = backend.dense(ids.data)
    V, E = weight.shape
    out = backend.empty((ids.size, E))
    words = [address(tokens), address(table), 0 if scales is None else address(scales)]
    words += [address(out), E, V, table.nbytes // max(V, 1)]
    words += [0 if scales is None else scales.shape[1], shift]
    backend.launch(
        "embedding.gather", words, items=ids.size, grain=4,
        reads=[tokens, table] if scales is None else [tokens, table, scales], writes=[out],
        form=form, wide_ids=ids.dtype == dtypes.int64,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {"embedding": Kernel(_embedding, _supports)}
