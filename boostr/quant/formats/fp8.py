"""FP8 as transformers' `fp8` and `fbgemm_fp8` and vLLM store it: e4m3, and scales that multiply.

Source: transformers (integrations/finegrained_fp8.py), github.com/deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

import numpy as np

from boostr.errors import ModelFileError
from boostr.quant.formats import floats
from boostr.quant.formats.fields import Axis
from boostr.quant.formats.layout import Layout, Numbers, Tensors
from boostr.quant.formats.table import Table, block_of
from boostr.quant.scheme import QuantizedTensor

_INVERSE = "weight_scale_inv"  # which multiplies, despite its name


class FP8:
    """See `layout.Method`."""

    name = "fp8"
    marks = (_INVERSE, "weight_scale")
    parts = ("weight", _INVERSE, "weight_scale", "input_scale", "input_scale_ub",
             "activation_scale")  # fmt: skip

    def __init__(self, config: Table, dtype: np.dtype) -> None:
        self.dtype = dtype
        config.one_of("fmt", ("e4m3",), "e4m3")
        has_blocks = config.values.get("weight_block_size") is not None
        self._block = block_of(config, "weight_block_size") if has_blocks else None

    def layout(self, module: str, tensors: Tensors) -> Layout:
        scale = _INVERSE if _INVERSE in tensors else "weight_scale"
        return of_shapes(tensors, scale, self._block, self.dtype)

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        if self._block is None:
            return None
        rows, columns = Axis(self._block[0]), Axis(self._block[1])
        shape = (weight.shape[0], weight.shape[1])
        return floats.fp8(shape, _INVERSE, rows, columns, self.dtype).written(weight)


def of_shapes(
    tensors: Tensors, scale: str, block: tuple[int, int] | None, dtype: np.dtype
) -> Layout:
    """The layout of e4m3 weights, whose scales' shape says what they are of."""
    weight, scales = tensors.get("weight"), tensors.get(scale)
    if weight is None or len(weight.shape) != 2:
        raise ModelFileError("no weight [N, K]")
    if scales is None:
        raise ModelFileError(f"{scale} missing")
    N, K = weight.shape
    rows, columns = floats.scale_axes(scales.shape, N, K, block)
    return floats.fp8((N, K), scale, rows, columns, dtype)
