"""Weights as the kernels of matrix products take them."""

from __future__ import annotations

from typing import Any, NamedTuple

from boostr import dtypes
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Weight = Tensor | QuantizedTensor

FLOAT, INT8, INT8_GROUP, W8A8, Q8_0, Q4_1 = range(6)  # FORM of `gemm_*.cu`
_BLOCKS = {"q8_0": Q8_0, "q4_1": Q4_1}
_FLOATS = {dtypes.float32: "F32", dtypes.float16: "F16", dtypes.bfloat16: "BF16"}
_NAMES = {
    INT8: "INT8", INT8_GROUP: "INT8_GROUP", W8A8: "W8A8", Q8_0: "Q8_0", Q4_1: "Q4_1",
}  # fmt: skip


class Stored(NamedTuple):
    """The arrays of a weight [N, K]; they are constant while a program lives.

    Attributes:
        form: FLOAT, INT8 (a scale for each row), INT8_GROUP, W8A8, Q8_0 or Q4_1.
        group: inputs that share a scale; 0: all of a row, or there are no scales.
        rows: dense [N, K], or blocks of GGUF [N, bytes].   scales: float32 [N, groups] or None.
    """

    form: int
    group: int
    rows: Any
    scales: Any
    N: int
    K: int

    @classmethod
    def of(cls, weight: Weight, backend: Any) -> Stored:
        N, K = weight.shape
        if isinstance(weight, Tensor):
            return cls(FLOAT, 0, backend.dense(weight.data), None, N, K)
        scheme, parts = weight.scheme, weight.parts
        if scheme.is_block:
            return cls(_BLOCKS[scheme.name], 32, backend.dense(parts["blocks"].data), None, N, K)
        form = W8A8 if scheme.activations_int8 else INT8_GROUP if scheme.group_size else INT8
        rows, scales = (backend.dense(parts[name].data) for name in ("values", "scales"))
        return cls(form, scheme.group_size, rows, scales, N, K)

    @property
    def name(self) -> str:
        """FORM of the GEMVs (`weights.cuh`), where each float type has its own."""
        return _FLOATS[self.rows.dtype] if self.form == FLOAT else _NAMES[self.form]

    @property
    def row_bytes(self) -> int:
        return self.rows.shape[1] * self.rows.itemsize
