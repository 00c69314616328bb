"""Weights as the kernels of matrix products take them."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr.quant.forms import W8A8, Form, form_of
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

Weight = Tensor | QuantizedTensor

# `Planes` of weights.cuh, in its order; zeros are where offsets would be
PLANES = ("codes", "high", "scales", "supers", "offsets", "floors")
NO_PLANES = (None,) * len(PLANES)
# by name, of scales and of offsets: bytes of one, and their type in CUDA
SCALE_BYTES = {"": 0, "f32": 4, "f16": 2, "bf16": 2, "i8": 1, "e8m0": 1, "e4m3": 1}
OFFSET_BYTES = {"": 0, "f32": 4, "f16": 2, "bf16": 2, "u8": 1, "zeros": 1}
_TYPES = {"f32": "float", "zeros": "i8"}  # others are called so there too


class Stored(NamedTuple):
    """The arrays of a weight [N, K]; they are constant while a program lives.

    Attributes:
        form: how its elements lie.   planes: its arrays in the order of PLANES, dense, 2-D; None
            where the form has none.   N: of a stack [X, N, K] all its rows.
    """

    form: Form
    planes: tuple[Any, ...]
    N: int
    K: int

    @classmethod
    def of(cls, weight: Weight, backend: CupyBackend) -> Stored:
        """Of a weight whose form `form_refusal` lets through."""
        *lead, K = weight.shape
        form = form_of(weight)
        if form is None:
            raise ValueError(f"expected a weight of floats or a known scheme, got {weight!r}")
        parts = {"codes": weight} if isinstance(weight, Tensor) else weight.parts
        found = {"offsets" if n == "zeros" else n: part for n, part in parts.items()}
        planes = tuple(
            backend.dense(found[name].data) if name in found else None for name in PLANES
        )
        if len(lead) != 1:
            planes = tuple(p if p is None else p.reshape(-1, p.shape[-1]) for p in planes)
        return cls(form, planes, math.prod(lead), K)

    def rows(self, start: int, end: int) -> Stored:
        """Rows start .. end - 1 of it."""
        planes = tuple(None if p is None else p[start:end] for p in self.planes)
        return self._replace(planes=planes, N=end - start)

    @property
    def codes(self) -> Any:
        """Floats of the weight's own dtype, or its packed codes."""
        return self.planes[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of codes."""
        return self.codes.shape[1] * self.codes.itemsize

    @property
    def pieces(self) -> tuple[int, int]:
        """Bytes, up to 16, in which rows of high bits, and of scales and offsets, can be copied."""
        units = [16 if p is None else _unit(p) for p in self.planes]
        return units[1], min(units[2], units[4])

    @property
    def aligned(self) -> bool:
        """Whether rows of codes begin at multiples of 16 bytes, and those of other planes at
        multiples of what their length is a multiple of."""
        return self.row_bytes % 16 == 0 and all(
            p is None or p.data.ptr % _unit(p) == 0 for p in self.planes
        )

    @property
    def in_eights(self) -> bool:
        """Whether `eight` of weights.cuh can read it."""
        codes, high, *_ = self.planes
        least = 8 if codes.itemsize == 1 else 16
        whole = high is None or high.data.ptr % (8 if self.form.codes == "c6" else 4) == 0
        return self.K % 8 == 0 and codes.data.ptr % least == 0 and whole


def _unit(plane: Any) -> int:
    """The largest of 1, 2, 4, 8 and 16 bytes that the length of a row is a multiple of."""
    nbytes = plane.shape[1] * plane.itemsize
    return min(16, nbytes & -nbytes)


@cache
def form_refusal(form: Form | None) -> str | None:
    """Why `shaders/cuda/products/weights.cuh` cannot decode a form; None if it can."""
    if form is None:
        return "weights of this dtype"
    if form.is_float:
        return None
    if form.table and form.codes not in ("c4", "c3", "c2"):
        return f"a table of numbers for codes {form.codes}"
    if (form.codes == "e4m3" or form.table) and form.zero:
        return "codes that stand for other numbers, with a zero"
    if form.zero not in ((0, -128) if form.codes == "c8" else range(129)):
        return f"a zero of {form.zero} with codes {form.codes}"
    odd = form.group & form.group - 1 or form.super & form.super - 1
    if odd or 0 < form.group < 16 or 0 < form.super < 64 or max(form.group, form.super) > 256:
        return f"groups of {form.group} and {form.super} inputs"
    if form.super and not 0 < form.group <= form.super:
        return f"super-scales of {form.super} inputs over groups of {form.group}"
    if form.offsets and not form.group:
        return "offsets of whole rows"
    if form.rounds_input and form != W8A8:
        return "a rounded input with codes other than bytes under row scales"
    return None


@cache
def of_integers(form: Form) -> bool:
    """Whether what codes stand for, before the zero, are signed or unsigned bytes."""
    whole = all(v == int(v) and -128 <= v <= 127 for v in form.table)
    return whole and form.codes != "e4m3" and not form.is_float


@cache
def form_macros(form: Form) -> dict[str, Any]:
    """The macros of weights.cuh; those at their default are left out."""
    every = {
        "ZERO": form.zero, "GROUP": form.group, "SUPER": form.super,
        "FLOORS": int(form.offsets == "u8"), "ZEROS": int(form.offsets == "zeros"),
        "ROUNDS": int(form.rounds_input),
    }  # fmt: skip
    found: dict[str, Any] = {name: value for name, value in every.items() if value}
    if form.scale not in ("", "f32"):
        found["SCALE_T"] = _TYPES.get(form.scale, form.scale)
    if form.offsets:
        found["OFFSET_T"] = _TYPES.get(form.offsets, form.offsets)
    if form.factor != 1.0:
        found["FACTOR"] = f"{form.factor!r}f"
    if form.table:
        numbers = np.zeros(16, np.int8 if of_integers(form) else np.float32)
        numbers[: len(form.table)] = form.table
        found |= {"TABLE": table_words(numbers), "TABLE_FLOATS": int(not of_integers(form))}
    return {"CODES": form.codes.upper(), **found}


def table_words(numbers: np.ndarray) -> str:
    """A table of 16 numbers of 8 or 32 bits as `looked_up` of weights.cuh reads it."""
    by_byte = numbers.view(np.uint8).reshape(16, -1).T  # first bytes, then second, ...
    return ",".join(f"{word:#x}u" for word in np.ascontiguousarray(by_byte).view("<u4").ravel())


# forms that between them have every branch of weights.cuh, for the compile gate
SNIPPETS = {
    "e4m3": Form("e4m3", group=32, scale="e8m0"),
    "c8": Form("c8", zero=-128, group=64, scale="bf16", offsets="bf16"),
    "c5": Form("c5", group=32, scale="i8", super=256, offsets="u8"),
    "c3": Form("c3", group=32, scale="f16", offsets="zeros"),
    "c3-table": Form("c3", group=16, scale="i8", super=256, table=(-3.0, -1.0, 1.0, 3.0)),
    "c2": Form("c2", group=16, scale="i8", super=256, offsets="u8"),
    "c4-table": Form("c4", group=16, scale="e4m3", super=256, table=(0.0, 12.0), factor=0.5),
    "c4-floats": Form("c4", group=64, scale="f32", table=(0.25, 1.0)),
}
