"""What is multiplied: matrices in stored form, as `gemm_operand.wgsl` reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from boostr import dtypes
from boostr.backends.wgpu.runtime import wgsl
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Weight = Tensor | QuantizedTensor
FLOATS = (dtypes.float32, dtypes.float16, dtypes.bfloat16)
_BLOCKS = ("q8_0", "q4_1")


@dataclass(frozen=True)
class Operand:
    """One side of a product: `rows` of `inputs` numbers, perhaps several such matrices.

    Attributes:
        array: the values; its window is what a kernel sees.
        form: "f32", "f16", "bf16", "i8" (a scale for each row), "i8g" (for each `group` inputs),
            "words" (int8, multiplied as integers), "q8_0", "q4_1".
        line: elements from one line to the next; lines are rows, or inputs if `across`.
        batch: elements from one matrix to the next; 0: all products share it.
        scales: f32 [rows, groups] of int8.
    """

    array: GpuArray
    form: str
    rows: int
    inputs: int
    line: int
    across: bool = False
    batch: int = 0
    scales: GpuArray | None = None
    group: int = 0

    @classmethod
    def of_weight(cls, weight: Weight, backend: Any) -> Operand:
        """A weight [N, K] in any form that `linear` takes."""
        N, K = weight.shape
        if isinstance(weight, Tensor):
            return cls.of_matrix(backend, weight.data)
        scheme = weight.scheme
        if scheme.is_block:
            blocks = backend.dense(weight.parts["blocks"].data)
            if blocks.offset % 4:
                blocks = backend.copy(blocks)
            return cls(blocks, scheme.name, N, K, K // 32 * scheme.block_bytes)
        form = "words" if scheme.activations_int8 else "i8g" if scheme.group_size else "i8"
        values, scales = (backend.dense(weight.parts[n].data) for n in ("values", "scales"))
        return cls(values, form, N, K, K, scales=scales, group=scheme.group_size)

    @classmethod
    def of_matrix(cls, backend: Any, x: GpuArray) -> Operand:
        """Floats [rows, inputs] or [batches, rows, inputs] of any strides; copied only where
        neither axis is dense."""
        *lead, rows, inputs = x.shape
        *apart, row, one = x.strides
        if not ((one == 1 or inputs == 1) and row >= 0) and not (row == 1 and one >= 0):
            return cls.of_matrix(backend, backend.copy(x))
        if any(stride < 0 for stride in apart):
            return cls.of_matrix(backend, backend.copy(x))
        batch = apart[0] if lead and lead[0] > 1 else 0
        across = not (one == 1 or inputs == 1)
        line = one if across else row if rows > 1 else inputs
        return cls(x, wgsl.name_of(x.dtype), rows, inputs, line, across, batch)

    def whole(self) -> bool:
        """Whether lines begin and end at whole vectors of the shader's loads."""
        if self.form in _BLOCKS:
            return True
        if self.form == "words":  # behind its K inputs a line holds zeros
            return self.array.offset % 16 == 0 and self.line % 16 == 0
        length = self.rows if self.across else self.inputs
        return all(n % 4 == 0 for n in (self.array.offset, self.line, self.batch, length))

    def part(self, start: int, stop: int) -> Operand:
        """Rows start to stop of a single matrix, as a window of its own."""
        if (start, stop) == (0, self.rows):
            return self
        step = 1 if self.across else self.line
        return replace(
            self, rows=stop - start, array=_rows(self.array, start * step, stop - start),
            scales=self.scales and _rows(self.scales, start * self.scales.strides[0], stop - start),
        )  # fmt: skip

    def matrix(self, number: int) -> Operand:
        """One matrix of several."""
        array = self.array.view(
            shape=self.array.shape[1:], strides=self.array.strides[1:],
            offset=self.array.offset + number * self.batch,
        )  # fmt: skip
        return replace(self, array=array, batch=0)

    def contraction(self, start: int, stop: int) -> Operand:
        """Inputs start to stop of a single float matrix."""
        step = self.line if self.across else 1
        shape = (*self.array.shape[:-1], stop - start)
        array = self.array.view(shape=shape, offset=self.array.offset + start * step)
        return replace(self, array=array, inputs=stop - start)

    def seen(self) -> int:
        """Bytes between the first and the last element."""
        first, last = self.array.span
        return (last - first) * self.array.dtype.itemsize

    def values(self, side: str) -> dict[str, Any]:
        """What the shader's template must know; `side` is "X" or "W"."""
        found = {side: self.form, f"{side}_WHOLE": self.whole(), f"{side}_ACROSS": self.across}
        return found | ({"GROUP": self.group} if self.form == "i8g" else {})

    def reads(self) -> list[GpuArray]:
        """The arrays to bind."""
        return [self.array, self.scales] if self.form == "i8g" and self.scales else [self.array]


def _rows(array: GpuArray, skip: int, rows: int) -> GpuArray:
    return array.view(shape=(rows, *array.shape[1:]), offset=array.offset + skip)
