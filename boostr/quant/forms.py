"""How the elements of a weight lie in memory: numbered and named once, for kernels of every
language. CUDA and WGSL sources get the numbers as `#define`s and constants of these names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from boostr import dtypes
from boostr.quant.scheme import QuantizedTensor, Scheme

if TYPE_CHECKING:
    from boostr.tensor import Tensor

# what one element is: floats; signed bytes; fields of bits in one plane or two; 8-bit floats
CODES = {
    "f32": 0, "f16": 1, "bf16": 2, "c8": 3, "c4": 4, "c6": 5, "c5": 6, "c3": 7, "c2": 8, "e4m3": 9,
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """All that a kernel must know of a weight's form to be compiled for it.

    Attributes:
        codes: a key of CODES.   zero: subtracted from a code's number.
        table: the numbers that codes stand for; () for the codes themselves.
        group: inputs that share a scale; 0 a row, or no scales at all (floats).
        scale: a key of `scheme.SCALES`, "" for floats.   factor: a power of two, in all scales.
        super: inputs that share a super-scale; 0 none.
        offsets: a key of `scheme.OFFSETS`; "" none.
        rounds_input: whether the product rounds its input to int8 too.
    """

    codes: str
    zero: int = 0
    group: int = 0
    scale: str = ""
    super: int = 0
    offsets: str = ""
    rounds_input: bool = False
    table: tuple[float, ...] = ()
    factor: float = 1.0

    @property
    def is_float(self) -> bool:
        return not self.scale

    @property
    def row_scaled(self) -> bool:
        """Whether codes have one float32 scale for a row and no more, which the end of a product
        can multiply by."""
        plain = self.factor == 1.0 and not (self.group or self.super or self.offsets)
        return self.scale == "f32" and plain


W8A8 = Form("c8", scale="f32", rounds_input=True)  # whose products are sums of integers


def form_of(weight: Tensor | QuantizedTensor) -> Form | None:
    """The form of a weight; None for a dtype that no product reads (float64, integers)."""
    if isinstance(weight, QuantizedTensor):
        return scheme_form(weight.scheme)
    return _FLOATS.get(weight.dtype)


_FLOATS = {dtypes.float32: Form("f32"), dtypes.float16: Form("f16"), dtypes.bfloat16: Form("bf16")}


@cache
def scheme_form(scheme: Scheme) -> Form:
    """The form of every weight of a scheme."""
    values = scheme.values
    return Form(
        codes=values if isinstance(values, str) else f"c{scheme.bits}",
        zero=scheme.zero,
        group=scheme.group_size,
        scale=scheme.scale,
        super=scheme.super_size,
        offsets=scheme.offsets,
        rounds_input=scheme.activations_int8,
        table=() if isinstance(values, str) else values,
        factor=scheme.factor,
    )
