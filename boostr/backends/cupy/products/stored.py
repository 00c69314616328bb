"""Weights as the kernels of matrix products take them."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from boostr.quant.forms import W8A8, Form, form_of
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

Weight = Tensor | QuantizedTensor

PLANES = ("codes", "high", "scales", "supers", "offsets")  # `Planes` of weights.cuh, in its order
_CODES = ("f32", "f16", "bf16", "c8", "c4", "c6")  # that weights.cuh decodes
NO_PLANES = (None,) * len(PLANES)
SCALE_BYTES = {"": 0, "f32": 4, "f16": 2, "i8": 1}
_SCALES = {"f32": "float", "f16": "f16", "i8": "i8"}  # and the scales, as CUDA calls them


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
        planes = tuple(
            backend.dense(parts[name].data) if name in parts else None for name in PLANES
        )
        if len(lead) != 1:
            planes = tuple(p if p is None else p.reshape(-1, p.shape[-1]) for p in planes)
        return cls(form, planes, math.prod(lead), K)

    @property
    def codes(self) -> Any:
        """Floats of the weight's own dtype, or its packed codes."""
        return self.planes[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of codes."""
        return self.codes.shape[1] * self.codes.itemsize

    @property
    def piece(self) -> int:
        """Bytes, 1 to 16, in which rows of scales and of offsets can be copied."""
        return min((_unit(p) for p in self.planes[2::2] if p is not None), default=16)

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
        whole = high is None or high.data.ptr % 8 == 0
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
    if form.codes not in _CODES:
        return f"codes {form.codes} of the weight"
    if form.is_float:
        return None
    if form.table or form.factor != 1.0:
        return "codes that stand for other numbers"
    if form.offsets not in ("", "f16"):
        return f"offsets {form.offsets} of the weight"
    if (form.scale == "i8") != (form.super > 0):
        return f"scales {form.scale} under super-scales of {form.super} inputs"
    if form.scale not in _SCALES:
        return f"scales {form.scale} of the weight"
    if form.codes == "c8" and form.zero:
        return "signed codes with a zero"
    if form.group % 16 or form.super % 32 or (form.super and form.super % max(form.group, 1)):
        return f"groups of {form.group} and {form.super} inputs"
    if form.offsets and not form.group:
        return "offsets of whole rows"
    if form.rounds_input and form != W8A8:
        return "a rounded input with codes other than bytes under row scales"
    return None


@cache
def form_macros(form: Form) -> dict[str, Any]:
    """The macros of weights.cuh; those at their default are left out."""
    every = {
        "ZERO": form.zero, "GROUP": form.group, "SUPER": form.super,
        "OFFSETS": int(form.offsets != ""), "ROUNDS": int(form.rounds_input),
    }  # fmt: skip
    found: dict[str, Any] = {name: value for name, value in every.items() if value}
    if form.scale not in ("", "f32"):
        found["SCALE_T"] = _SCALES[form.scale]
    return {"CODES": form.codes.upper(), **found}
