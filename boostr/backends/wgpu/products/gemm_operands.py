"""What is multiplied: matrices in stored form, as `gemm_operand.wgsl` reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from boostr.backends.wgpu.products import planes
from boostr.backends.wgpu.products.planes import PACKED, Planes, Weight
from boostr.backends.wgpu.runtime import wgsl
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.quant.forms import Form
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


@dataclass(frozen=True)
class Operand:
    """One side of a product: `rows` of `inputs` numbers, perhaps several such matrices.

    Attributes:
        array: the floats or codes; its window is what a kernel sees.
        line: elements from one line to the next; lines are rows, or inputs if `across`.
        batch: elements from one matrix to the next; 0: all products share it.
        more: the planes behind the codes, as rows without gaps.
    """

    array: GpuArray
    form: Form
    rows: int
    inputs: int
    line: int
    across: bool = False
    batch: int = 0
    more: Planes = ()

    @classmethod
    def of_weight(cls, weight: Weight, backend: WgpuBackend) -> Operand:
        """A weight [N, K] in any form that `linear` takes."""
        N, K = weight.shape
        if isinstance(weight, Tensor):
            return cls.of_matrix(backend, weight.data)
        codes, *more = planes.planes_of(backend, weight)
        form = planes.stored_form(weight)
        return cls(codes, form, N, K, codes.shape[1], more=tuple(more))

    @classmethod
    def of_matrix(cls, backend: WgpuBackend, x: GpuArray) -> Operand:
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
        return cls(x, Form(wgsl.name_of(x.dtype)), rows, inputs, line, across, batch)

    @property
    def name(self) -> str:
        """What sources call the form."""
        return "words" if self.form.rounds_input else self.form.codes

    @property
    def row_scales(self) -> GpuArray | None:
        """f32 [rows] of codes that have one scale for a row."""
        return self.more[-1] if self.form.row_scaled else None

    def whole(self) -> bool:
        """Whether lines begin and end at whole vectors of the shader's loads."""
        if self.form.codes in PACKED:
            return True
        if self.form.rounds_input:  # behind its K inputs a line holds zeros
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
            more=planes.cut(self.more, start, stop - start),
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
        known = {"X": self.name} if side == "X" else {"FORM": self.form}
        return {**known, f"{side}_WHOLE": self.whole(), f"{side}_ACROSS": self.across}

    def bases(self, backend: WgpuBackend, load: int = 1) -> list[int]:
        """Where the planes begin: codes in loads of that many bytes; all else in elements."""
        each = load if self.in_planes else self.array.dtype.itemsize
        return planes.bases(backend, self.form, self.reads(), each)

    @property
    def in_planes(self) -> bool:
        """Whether kernels decode it as `planes.wgsl` has it."""
        return not (self.form.is_float or self.form.rounds_input)

    def reads(self) -> Planes:
        """The arrays to bind."""
        return (self.array, *self.more)


def _rows(array: GpuArray, skip: int, rows: int) -> GpuArray:
    return array.view(shape=(rows, *array.shape[1:]), offset=array.offset + skip)
