"""GPTQ, and AutoRound's export of it: words along the inputs, [K, N].

Source: github.com/AutoGPTQ/AutoGPTQ, github.com/ModelCloud/GPTQModel, github.com/intel/auto-round.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from boostr.errors import ModelFileError
from boostr.quant.formats.awq import AWQ
from boostr.quant.formats.fields import EACH, FLOATS, WORDS, Axis, Field, dense
from boostr.quant.formats.layout import (
    Integers,
    Layout,
    Method,
    Numbers,
    Tensors,
    integers,
    scale_name,
)
from boostr.quant.formats.table import Table, expression
from boostr.quant.scheme import QuantizedTensor


class _Settings(NamedTuple):
    bits: int
    group: int
    symmetric: bool


class GPTQ:
    """See `layout.Method`. `name` and whether zeros are stored less 1 (the first format)."""

    marks = ("qweight",)
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, config: Table, dtype: np.dtype, name: str = "gptq") -> None:
        self.name, self.dtype = name, dtype
        key = "checkpoint_format" if config.values.get("checkpoint_format") else "format"
        self._less_one = config.one_of(key, ("gptq", "gptq_v2"), "gptq") == "gptq"
        config.one_of("pack_dtype", ("int32",), "int32")
        self._all = _settings(config)
        own = config.table("dynamic")
        self._own = {
            expression(name.removeprefix("+:"), own.source): _settings(
                Table({**config.values, **own.table(name).values}, own.source)
            )
            for name in own.values
            if not name.startswith("-:")  # modules that are not quantized
        }

    def layout(self, module: str, tensors: Tensors) -> Layout:
        own = (settings for name, settings in self._own.items() if name.match(module))
        bits, group, symmetric = next(own, self._all)
        words = tensors["qweight"].shape
        if len(words) != 2 or words[0] * 32 % bits:
            raise ModelFileError(f"qweight: expected [K · {bits} / 32, N], got {list(words)}")
        if "scales" not in tensors:
            raise ModelFileError("scales missing")
        N, K = words[1], words[0] * 32 // bits
        codes = Axis(packing=dense(bits))
        made = integers(
            Integers(bits, group, K, scale_name(tensors["scales"].dtype), "zeros"),
            N,
            {
                "codes": Field("qweight", EACH, codes, WORDS, turned=True),
                "scales": Field("scales", EACH, Axis(group), FLOATS, turned=True),
                "zeros": Field("qzeros", codes, Axis(group), WORDS, turned=True),
            },
            tensors,
            self.dtype,
            less_one=self._less_one,
            symmetric=symmetric,
        )
        return made.ordered(tensors["g_idx"], group) if "g_idx" in tensors else made

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        return None


def _settings(table: Table) -> _Settings:
    bits, group = table.one_of("bits", tuple(range(2, 9))), table.get("group_size", int, -1)
    if group != -1 and group < 1:
        raise ModelFileError(f"{table.source}: group_size must be -1 or 1 or more, got {group}")
    return _Settings(bits, max(group, 0), table.get("sym", bool, True))


def _is_float(settings: dict) -> bool:
    """Whether AutoRound's settings of a module say that it is not quantized."""
    bits = settings.get("bits")
    return isinstance(bits, int) and bits >= 16


def auto_round(config: Table, dtype: np.dtype) -> Method:
    """AutoRound's folders, which are GPTQ's or AWQ's under other settings."""
    known = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2",
             "auto_round:gptqmodel": "gptq_v2", "auto_round:auto_awq": "awq"}  # fmt: skip
    config.one_of("data_type", ("int",), "int")
    layout = known[config.one_of("packing_format", tuple(known), "auto_round:auto_gptq")]
    own = {f"{re.escape(name)}$": v for name, v in config.table("extra_config").values.items()}
    own = {name: v for name, v in own.items() if isinstance(v, dict) and not _is_float(v)}
    values = {**config.values, "checkpoint_format": layout, "dynamic": own}
    if layout == "awq":
        return AWQ(Table({**values, "version": "gemm"}, config.source), dtype, "auto-round")
    return GPTQ(Table(values, config.source), dtype, "auto-round")
