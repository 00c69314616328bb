"""How a cache keeps keys and values in fewer bits than floats: forms as data.

A row is the D numbers that one token has in one head. The planes lie apart, blocked as the float
cache is, so that a block of tokens is a block of each plane:

    codes   8 bits: int8 [NB, bs, K, D]. 4 bits: uint8 [NB, bs, K, D / 2], of two nibbles; byte i of
            a group's 16 has number i in its low one and number i + 16 in its high one.
    scales  int8: float32 [NB, bs, K, 1]; number = scale · code, scale = absmax / 127, code =
            rint(number / scale); a row of zeros has scale 0.
            int4: bfloat16 [NB, bs, K, 2 G], scale and floor of each group of 32; number = scale ·
            code + floor, floor = min, scale = (max - floor) / 15, both rounded, code = rint((number
            - floor) / scale), within 0 .. 15. Keys have channels that lie far from 0: without
            floors 4 bits lose three times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.errors import OptionError


@dataclass(frozen=True)
class KVForm:
    """One way to pack a row.

    Attributes:
        bits: of a code, 8 or 4.   group: numbers that share a scale; 0: all of a row.
        floors: whether a group has a floor beside its scale.
    """

    name: str
    bits: int
    group: int = 0
    floors: bool = False

    @property
    def codes_dtype(self) -> np.dtype:
        return dtypes.int8 if self.bits == 8 else dtypes.uint8

    @property
    def scales_dtype(self) -> np.dtype:
        return dtypes.bfloat16 if self.floors else dtypes.float32

    def widths(self, D: int) -> tuple[int, int]:
        """Elements of codes and of scales of a row of D numbers.

        Raises:
            OptionError: its groups do not divide D.
        """
        if self.group and D % self.group:
            raise OptionError(
                f"kv_dtype {self.name}: heads of {D} are not whole groups of {self.group}; use int8"
            )
        return D * self.bits // 8, D // (self.group or D) * (2 if self.floors else 1)

    def nbytes(self, D: int) -> int:
        """Of a row of D numbers."""
        codes, scales = self.widths(D)
        return codes + scales * self.scales_dtype.itemsize


KV_FORMS = {form.name: form for form in (KVForm("int8", 8), KVForm("int4", 4, 32, floors=True))}
_BY_CODES = {form.codes_dtype: form for form in KV_FORMS.values()}


def parse_kv_form(name: str) -> KVForm:
    """The form of a name, or an error that lists them."""
    if name not in KV_FORMS:
        raise OptionError(f"unknown kv_dtype {name!r}; known: {', '.join(KV_FORMS)}")
    return KV_FORMS[name]


def kv_form_of(codes: np.dtype) -> KVForm:
    """The form whose plane of codes has this dtype."""
    return _BY_CODES[np.dtype(codes)]
