"""Launches of the quantization kernels; see `kernels/products/quant.py`."""

from __future__ import annotations

import math

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.planes import place, stored_form, why_not
from boostr.quant.gguf import BLOCK_TYPES
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor


def _quantize_supports(w: Tensor, group: int) -> str | None:
    return why_not(w) if w.shape[1] else "the weight has no inputs"


def _quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    backend: NumpyBackend = w.backend  # type: ignore[assignment]
    source = backend.dense(w.data)
    N, K = w.shape
    values, scales = backend.room((N, K), "int8"), backend.room((N, -(-K // group)))
    params = [*map(address, (source, values, scales)), K, group]
    backend.launch(
        "quant.quantize", params, items=N, grain=8, reads=[source], writes=[values, scales],
        form=stored_form(w).codes,
    )  # fmt: skip
    return Tensor.wrap(values, backend), Tensor.wrap(scales, backend)


def _dequantize_supports(w: QuantizedTensor, dtype: np.dtype) -> str | None:
    return why_not(w)


def _dequantize(w: QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: NumpyBackend = w.backend  # type: ignore[assignment]
    words, planes = place(w, backend)
    out = backend.empty(w.shape)
    p = words + [0] * (layout.TABLE_PARAMS - layout.PLANE_WORDS)
    p[layout.OUT], p[layout.WIDTH] = address(out), w.shape[-1]
    backend.launch(
        "quant.dequantize", p, items=math.prod(w.shape[:-1]), grain=8, reads=planes, writes=[out],
        form=stored_form(w),
    )  # fmt: skip
    made = Tensor.wrap(out, backend)
    return made if dtype == out.dtype else made.to(dtype)


def _read_blocks_supports(rows: Tensor, kind: str, places: list[Tensor]) -> str | None:
    if not all(x.data.flags.c_contiguous for x in (rows, *places)):
        return "the blocks or their places are not dense"
    described = BLOCK_TYPES[kind].read is None
    return None if described else f"no kernel reads blocks of {kind}"


def _read_blocks(rows: Tensor, kind: str, places: list[Tensor]) -> None:
    backend: NumpyBackend = rows.backend  # type: ignore[assignment]
    block, (N, width) = BLOCK_TYPES[kind], rows.shape
    p = [0] * layout.REPACK_PARAMS
    for name, plane in zip(block.scheme.parts, places, strict=True):
        at = layout.PLANES[name]
        p[at], p[at + 1] = address(plane.data), plane.data.strides[0]
    p[layout.BLOCKS], p[layout.BLOCK_ROW_BYTES] = address(rows.data), width
    p[layout.BLOCK_COUNT] = width // block.nbytes
    backend.launch(
        "repack.blocks", p, items=N, grain=max(1, 65536 // max(width, 1)),
        reads=[rows.data], writes=[plane.data for plane in places],
        nbytes=block.nbytes, size=block.size, bits=block.scheme.bits, fields=block.fields,
        codes=block.codes, halves=block.halves, small=block.small,
    )  # fmt: skip


KERNELS = {
    "quantize": Kernel(_quantize, _quantize_supports),
    "read_blocks": Kernel(_read_blocks, _read_blocks_supports),
    "dequantize": Kernel(_dequantize, _dequantize_supports),
}
