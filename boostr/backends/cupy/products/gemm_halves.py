"""What Hopper's products of many rows prepare: x as float16, powers of two that bring rows into its
range, packed weights decoded to 16 bits; see `gemm_halves.cu`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.products.gemm import aligned
from boostr.backends.cupy.products.stored import (
    NO_PLANES,
    SNIPPETS,
    Stored,
    form_macros,
    of_integers,
)
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


@cache
def folded(form: Form) -> bool:
    """Whether weights are multiplied as float16, scaled and all; see `gemm_sm90.cu`."""
    return bool(form.group or (form.table and not of_integers(form)))


class Halves(NamedTuple):
    """x as float16 [M, K rounded up to 8], and the powers of two float32 [M] that its rows were
    divided by. float16 x stays as it is, without powers."""

    x: Any
    powers: Any

    @classmethod
    def room(cls, backend: CupyBackend, x: Any) -> Halves:
        """For x [M, K]."""
        if x.dtype == dtypes.float16:
            return cls(x, None)
        M, K = x.shape
        return cls(backend.empty((M, -(-K // 8) * 8), np.float16), backend.empty((M,), np.float32))


def halve(
    backend: CupyBackend, x: Any, halves: Halves, weights: list[Stored], downs: Any = None
) -> None:
    """Fill `halves` of x, and `downs` float32 [sum of N] with powers of two for the rows of up to
    three weights one after the other."""
    M, K = x.shape
    rows = 0 if halves.powers is None else M
    N = 0 if downs is None else sum(w.N for w in weights)
    planes, counts = _three(weights)
    backend.launch(
        "gemm_halves", "gemm_halves", (rows + -(-N // 8),), (256,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K),
            halves.x, np.int64(-(-K // 8) * 8), halves.powers, *planes,
            *(counts if N else (0, 0, 0)), downs, rows, K, int(K % 8 == 0 and aligned(x)),
        ],
        dependent=True, X=backend.c_type(x.dtype), **_macros(weights[0].form),
    )  # fmt: skip


def decode(backend: CupyBackend, weights: list[Stored], decoded: Any, factors: Any) -> None:
    """Fill `decoded` [sum of N, K] with the rows of up to three weights divided by `factors`
    float32 [sum of N]: float16 and powers of two where the form is `folded`, else codes as they are
    and whole scales."""
    planes, (n0, n1, n2) = _three(weights)
    backend.launch(
        "gemm_decode", "gemm_decode", (n0 + n1 + n2,), (256,),
        [*planes, n0, n1, factors, decoded, weights[0].K],
        dependent=True, O=backend.c_type(decoded.dtype), **_macros(weights[0].form),
    )  # fmt: skip


def _three(weights: list[Stored]) -> tuple[list[Any], list[int]]:
    """Planes and rows of three weights, some of which may be none."""
    three = [*weights, *[None] * (3 - len(weights))]
    planes = [p for w in three for p in (w.planes if w else NO_PLANES)]
    return planes, [w.N if w else 0 for w in three]


@cache
def _macros(form: Form) -> dict[str, Any]:
    if form.codes == "e4m3":
        most = 448.0
    else:
        numbers = form.table or (
            (-128, 127) if form.codes == "c8" else (0, 2 ** int(form.codes[1]) - 1)
        )
        most = max(1.0, *(abs(n - form.zero) for n in numbers))
    return {**form_macros(form), "MOST": f"{float(most)!r}f"}


_DECODED = [(form, "f16") for form in SNIPPETS.values()] + [
    (scheme_form(SCHEMES[name]), kind)
    for name, kind in (("int8", "bf16"), ("q8_0", "f16"), ("q4_k", "f16"), ("q6_k", "f16"))
]
VARIANTS = [
    *(Variant("gemm_halves", {"X": "bf16", **_macros(form)}) for form in SNIPPETS.values()),
    *(
        Variant("gemm_decode", {"O": kind, **_macros(form)}, only="sm_90a")
        for form, kind in _DECODED
    ),
]
