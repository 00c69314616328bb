"""NVIDIA's ModelOpt: FP8 and NVFP4, module by module; which, the tensors say.

Source: github.com/NVIDIA/TensorRT-Model-Optimizer (modelopt/torch/export).
"""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.errors import ModelFileError
from boostr.quant.formats import floats
from boostr.quant.formats.fp8 import of_shapes
from boostr.quant.formats.layout import Layout, Numbers, Tensors
from boostr.quant.formats.table import Table
from boostr.quant.scheme import QuantizedTensor

_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION")


class ModelOpt:
    """See `layout.Method`."""

    name = "modelopt"
    marks = ("weight_scale",)
    parts = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")

    def __init__(self, config: Table, dtype: np.dtype) -> None:
        self.dtype = dtype
        config.one_of("quant_algo", _ALGORITHMS)
        layers = config.table("quantized_layers")
        for name in layers.values:
            layers.table(name).one_of("quant_algo", _ALGORITHMS[:-1])

    def layout(self, module: str, tensors: Tensors) -> Layout:
        if "pre_quant_scale" in tensors:
            raise ModelFileError("pre_quant_scale (scales of the inputs) is not read")
        weight = tensors.get("weight")
        if weight is None or weight.dtype != dtypes.uint8:
            return of_shapes(tensors, "weight_scale", None, self.dtype)
        if len(weight.shape) != 2:
            raise ModelFileError(f"weight: expected [N, K / 2], got {list(weight.shape)}")
        shape = (weight.shape[0], 2 * weight.shape[1])
        codes = floats.nibbles("weight")
        return floats.nvfp4(shape, codes, "weight_scale", "weight_scale_2")

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        return None
