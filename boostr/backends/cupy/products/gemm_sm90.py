"""Launches of `gemm_sm90.cu`: matrix products of packed weights, and of few tokens, on Hopper."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.products.gemm import (
    aligned,
    in_fours,
    quantize_rows,
    type_macros,
)
from boostr.backends.cupy.products.gemm_sm90_plan import Warpgroups, pick_warpgroups
from boostr.backends.cupy.products.stored import (
    NO_PLANES,
    SNIPPETS,
    Stored,
    form_macros,
    of_integers,
    table_words,
)
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.backends.cupy.runtime.tensor_map import tensor_map
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


def hopper(
    backend: CupyBackend,
    x: Any,
    weights: list[Stored],
    biases: list[Any],
    residual: Any,
    out: Any,
    plan: Warpgroups | None = None,
    early: bool = False,
) -> None:
    """As `mma`, by warpgroup products."""
    M, K = x.shape
    first = weights[0]
    x_scales = downs = None
    plan = plan or pick_warpgroups(backend, weights, M)
    if first.form.rounds_input:
        x, x_scales = quantize_rows(backend, x)
    elif not plan.few and folded(first.form):
        x, x_scales, downs = halves(backend, x, weights)
    rows = 64 * plan.groups
    width, high = plan.row_bytes(first.form)
    maps = [tensor_map(w.codes, (rows, width // w.codes.itemsize), width) for w in weights]
    highs = [tensor_map(w.planes[1], (rows, high), high) for w in weights] if high else maps
    x_map = tensor_map(x, (plan.tokens, 128 // x.itemsize))
    three = [*weights, *[None] * (3 - len(weights))]
    tiles = sum(-(-w.N // rows) for w in weights) * -(-M // plan.tokens)
    given = [b for b in biases if b is not None]
    backend.launch(
        "gemm_sm90", "gemm_sm90", (tiles, plan.shares),
        (128 * plan.groups + (128 if plan.tokens >= 128 else 32),),
        [
            *maps, *maps[:1] * (3 - len(maps)), *highs, *highs[:1] * (3 - len(highs)), x_map,
            x_scales, downs,
            *(p for w in three for p in (w.planes if w else NO_PLANES)),
            *biases, *[None] * (3 - len(biases)),
            *(w.N if w else 0 for w in three), residual, out,
            np.int64(out.strides[0] // out.itemsize if M > 1 else out.shape[1]), M, K,
            int(in_fours(out, residual)), int(early),
        ],
        shared_bytes=plan.shared_bytes(first.form), dependent=True,
        **type_macros(backend, x, first, out, given[0] if given else None, residual)
        | _number_table(first.form) | plan.defines(),
        WHOLE=int(K % (128 if plan.few else 64) == 0),
    )  # fmt: skip


@cache
def folded(form: Form) -> bool:
    """Whether weights are multiplied as float16, scaled and all; see `gemm_sm90.cu`."""
    return bool(form.group or (form.table and not of_integers(form)))


def halves(backend: CupyBackend, x: Any, weights: list[Stored]) -> tuple[Any, Any, Any]:
    """(x as float16 [M, K rounded up to 8], powers of two float32 [M] that its rows were divided
    by, and such [sum of N] for rows of the weights). float16 x stays as it is, without powers."""
    M, K = x.shape
    width = -(-K // 8) * 8
    rows = 0 if x.dtype == dtypes.float16 else M
    x16 = backend.empty((M, width), np.float16) if rows else x
    powers = backend.empty((M,), np.float32) if rows else None
    three = [*weights, *[None] * (3 - len(weights))]
    N = sum(w.N for w in weights)
    downs = backend.empty((N,), np.float32)
    backend.launch(
        "gemm_halves", "gemm_halves", (rows + -(-N // 8),), (256,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K), x16, np.int64(width), powers,
            *(p for w in three for p in (w.planes if w else NO_PLANES)),
            *(w.N if w else 0 for w in three), downs, rows, K, int(K % 8 == 0 and aligned(x)),
        ],
        dependent=True, X=backend.c_type(x.dtype), **_halves_macros(weights[0].form),
    )  # fmt: skip
    return x16, powers, downs


@cache
def _halves_macros(form: Form) -> dict[str, Any]:
    if form.codes == "e4m3":
        most = 448.0
    else:
        numbers = form.table or (
            (-128, 127) if form.codes == "c8" else (0, 2 ** int(form.codes[1]) - 1)
        )
        most = max(1.0, *(abs(n - form.zero) for n in numbers))
    return {**form_macros(form), "MOST": f"{float(most)!r}f"}


@cache
def _number_table(form: Form) -> dict[str, str]:
    """TABLE of `gemm_sm90.cu`, where the numbers of codes are floats."""
    if not form.table or of_integers(form):
        return {}
    numbers = np.zeros(16, np.float16)
    numbers[: len(form.table)] = form.table
    return {"TABLE": table_words(numbers)}


_TO_COMPILE = [
    (Form("bf16"), Warpgroups(1, 32, 6, 4)), (Form("bf16"), Warpgroups(1, 8, 8, 8)),
    *((scheme_form(SCHEMES[scheme]), plan) for scheme, plan in (
        ("int8", Warpgroups(1, 32, 4, 8)), ("int8", Warpgroups(2, 64, 6, 5)),
        ("int8", Warpgroups(2, 128, 8, 3)), ("int8", Warpgroups(2, 256, 5)),
        ("int8-g32", Warpgroups(2, 128, 8)), ("int8-g32", Warpgroups(2, 256, 5)),
        ("int8-g128", Warpgroups(2, 256, 5)), ("q4_0", Warpgroups(2, 256, 5)),
        ("q4_1", Warpgroups(2, 256, 5)), ("q6_k", Warpgroups(2, 256, 4)),
        ("w8a8", Warpgroups(1, 32, 4, 2)), ("w8a8", Warpgroups(2, 256, 4)),
        ("int8", Warpgroups(2, 64, 3, 6, 2, True)), ("int8-g32", Warpgroups(2, 32, 8, 3, 1, True)),
        ("int8-g128", Warpgroups(2, 32, 4, 3, 1, True)), ("fp8", Warpgroups(2, 16, 5, 6, 2, True)),
        ("int4-g128", Warpgroups(2, 8, 8, 6, 2, True)),
        ("int4-g128", Warpgroups(2, 64, 8, few=True)),
        ("q4_0", Warpgroups(2, 32, 5, 6, 2, True)), ("q4_k", Warpgroups(2, 16, 8, 6, 2, True)),
        ("q4_k", Warpgroups(2, 64, 8, few=True)), ("q6_k", Warpgroups(2, 16, 6, 6, 2, True)),
        ("q6_k", Warpgroups(2, 64, 7, few=True)),
    )),
    *((form, Warpgroups(2, 256, 5)) for form in SNIPPETS.values()),
    *((form, Warpgroups(2, 16, 8, few=True)) for name, form in SNIPPETS.items()
      if name != "c4-floats"),
]  # fmt: skip


def _variants() -> list[Variant]:
    same: dict[str, Any] = dict.fromkeys(("X", "OUT", "BIAS", "RESIDUAL"), "bf16")
    made = []
    for form, plan in _TO_COMPILE:
        halved = folded(form) and not plan.few
        defines = {
            **same, **form_macros(form), **_number_table(form), **plan.defines(),
            "X": "i8" if form.rounds_input else "f16" if halved else "bf16", "WHOLE": 1,
        }  # fmt: skip
        made.append(Variant("gemm_sm90", defines, only="sm_90a"))
    prepared = ({"X": "bf16", **_halves_macros(form)} for form in SNIPPETS.values())
    return [*made, *(Variant("gemm_halves", defines) for defines in prepared)]


VARIANTS = _variants()
