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

# what one element is: floats, signed bytes, nibbles, nibbles with a plane of two bits more
CODES = {"f32": 0, "f16": 1, "bf16": 2, "c8": 3, "c4": 4, "c6": 5}


@dataclass(frozen=True)
class Form:
    """All that a kernel must know of a weight's form to be compiled for it.

    Attributes:
        codes: a key of CODES.   zero: subtracted from a code.
        group: inputs that share a scale; 0 a row, or no scales at all (floats).
        scale: dtype of the scales: "f32", "f16", "i8" (times super-scales), "" for floats.
        super: inputs that share a super-scale; 0 none.   offsets: whether groups have offsets.
        rounds_input: whether the product rounds its input to int8 too.
    """

    codes: str
    zero: int = 0
    group: int = 0
    scale: str = ""
    super: int = 0
    offsets: bool = False
    rounds_input: bool = False

    @property
    def is_float(self) -> bool:
        return not self.scale


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
    names = {dtypes.float32: "f32", dtypes.float16: "f16", dtypes.int8: "i8"}
    scale = names.get(scheme.scale, scheme.scale.name)  # one that no kernel knows, refused by name
    return Form(
        f"c{scheme.bits}",
        scheme.zero,
        scheme.group_size,
        scale,
        scheme.super_size,
        scheme.has_offsets,
        scheme.activations_int8,
    )
