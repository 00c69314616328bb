"""MLX: codes in words of 32 bits, with scales and biases of groups, or microscaling floats.

Source: github.com/ml-explore/mlx (mlx.core.quantize), github.com/ml-explore/mlx-lm (utils.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.errors import ModelFileError
from boostr.quant.formats import floats
from boostr.quant.formats.fields import EACH, FLOATS, Axis, Field, dense
from boostr.quant.formats.layout import Integers, Layout, Numbers, Tensors, scale_name
from boostr.quant.formats.table import Table
from boostr.quant.scheme import QuantizedTensor

_MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}  # and defaults


@dataclass(frozen=True)
class _Settings:
    mode: str
    group: int
    bits: int


class MLX:
    """See `layout.Method`."""

    name = "mlx"
    marks = ("scales",)
    parts = ("weight", "scales", "biases", "global_scale")

    def __init__(self, config: Table, dtype: np.dtype) -> None:
        self.all, self.dtype = _settings(config), dtype
        tables = {name: v for name, v in config.values.items() if isinstance(v, dict)}
        self.own = {
            name: _settings(Table(dict(config.values) | table, f"{config.source}: {name}"))
            for name, table in tables.items()
        }

    def layout(self, module: str, tensors: Tensors) -> Layout:
        chosen, weight = self.own.get(module, self.all), tensors.get("weight")
        if weight is None or len(weight.shape) != 2:
            raise ModelFileError("no weight [N, words]")
        N, words = weight.shape
        K, rest = divmod(words * 32, chosen.bits)
        if rest or K % chosen.group:
            raise ModelFileError(
                f"weight: {words} words are no whole groups of {chosen.group} codes of "
                f"{chosen.bits} bits; the config says otherwise than the tensors"
            )
        codes = _codes(chosen.bits)
        if chosen.mode == "nvfp4":
            tensor = "global_scale" if "global_scale" in tensors else ""
            return floats.nvfp4((N, K), codes, "scales", tensor)
        if chosen.mode != "affine":
            make = floats.mxfp4 if chosen.mode == "mxfp4" else floats.mxfp8
            return make((N, K), codes, "scales")
        if "scales" not in tensors:
            raise ModelFileError("scales missing")
        return _affine(chosen, (N, K), scale_name(tensors["scales"].dtype), self.dtype)

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        chosen, (N, K) = self.own.get(module, self.all), weight.shape
        if chosen.mode != "affine" or K % chosen.group:
            return None
        return _affine(chosen, (N, K), weight.scheme.scale, self.dtype).written(weight)


def _settings(table: Table) -> _Settings:
    mode = table.one_of("mode", tuple(_MODES), "affine")
    group, bits = _MODES[mode]
    if mode == "affine":
        group = table.one_of("group_size", (32, 64, 128), group)
        bits = table.one_of("bits", (2, 3, 4, 5, 6, 8), bits)
    else:
        table.one_of("group_size", (group,), group)
        table.one_of("bits", (bits,), bits)
    return _Settings(mode, group, bits)


def _codes(bits: int) -> Field:
    return Field("weight", EACH, Axis(packing=dense(bits)), (dtypes.uint32,))


def _affine(chosen: _Settings, shape: tuple[int, int], scale: str, dtype: np.dtype) -> Layout:
    """w = scale · q + bias; both in the dtype of the model."""
    ints = Integers(chosen.bits, chosen.group, shape[1], scale, scale)
    group = Axis(chosen.group)
    fields = {
        "codes": _codes(chosen.bits),
        "scales": Field("scales", EACH, group, FLOATS),
        "offsets": Field("biases", EACH, group, FLOATS),
    }
    return Layout(shape, ints.scheme, fields, ints.loaded, ints.stored)
