"""AWQ's GEMM layout: words along the outputs, [K, N], whose nibbles are shuffled.

Source: github.com/casper-hansen/AutoAWQ (awq/modules/linear/gemm.py).
"""

from __future__ import annotations

import numpy as np

from boostr.errors import ModelFileError
from boostr.quant.formats.fields import EACH, FLOATS, WORDS, Axis, Field, Packing
from boostr.quant.formats.layout import Integers, Layout, Numbers, Tensors, integers, scale_name
from boostr.quant.formats.table import Table
from boostr.quant.scheme import QuantizedTensor

_SHUFFLED = Axis(packing=Packing(4, (0, 16, 4, 20, 8, 24, 12, 28)))  # nibble i: output 0 2 4 6 1 …


class AWQ:
    """See `layout.Method`."""

    marks = ("qweight",)
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, config: Table, dtype: np.dtype, name: str = "awq") -> None:
        self.name, self.dtype = name, dtype
        version = config.get("version", str, "gemm").lower()
        Table({"version": version}, config.source).one_of("version", ("gemm",))
        config.one_of("bits" if config.values.get("bits") else "w_bit", (4,))
        key = "group_size" if config.values.get("group_size") else "q_group_size"
        group = config.get(key, int, 128)
        if group != -1 and group < 1:
            raise ModelFileError(f"{config.source}: {key} must be -1 or 1 or more, got {group}")
        self._group = Axis(max(group, 0))

    def layout(self, module: str, tensors: Tensors) -> Layout:
        words = tensors["qweight"].shape
        if len(words) != 2:
            raise ModelFileError(f"qweight: expected [K, N / 8], got {list(words)}")
        if "scales" not in tensors:
            raise ModelFileError("scales missing")
        N, K = 8 * words[1], words[0]
        return integers(
            Integers(4, self._group.group, K, scale_name(tensors["scales"].dtype), "zeros"),
            N,
            {
                "codes": Field("qweight", _SHUFFLED, EACH, WORDS, turned=True),
                "scales": Field("scales", EACH, self._group, FLOATS, turned=True),
                "zeros": Field("qzeros", _SHUFFLED, self._group, WORDS, turned=True),
            },
            tensors,
            self.dtype,
        )

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        return None
