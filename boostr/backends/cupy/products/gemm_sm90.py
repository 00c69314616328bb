"""Launches of `gemm_sm90.cu`: matrix products of packed weights, and of few tokens, on Hopper."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.cupy.products.gemm import in_fours, quantize_rows, type_macros
from boostr.backends.cupy.products.gemm_halves import Halves, decode, folded, halve
from boostr.backends.cupy.products.gemm_sm90_plan import (
    Warpgroups,
    decoded_rows,
    decodes,
    pick_warpgroups,
)
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
    M = x.shape[0]
    first = weights[0]
    x_scales = downs = None
    if plan is None and decodes(weights, M):
        _decoded(backend, x, weights, biases, residual, out)
        return
    plan = plan or pick_warpgroups(backend, weights, M)
    if first.form.rounds_input:
        x, x_scales = quantize_rows(backend, x)
    elif not plan.few and folded(first.form):
        given, (x, x_scales) = x, Halves.room(backend, x)
        downs = backend.empty((sum(w.N for w in weights),), np.float32)
        halve(backend, given, Halves(x, x_scales), weights, downs)
    _multiply(backend, (x, x_scales), weights, downs, biases, residual, out, plan, early)


def _decoded(
    backend: CupyBackend,
    x: Any,
    weights: list[Stored],
    biases: list[Any],
    residual: Any,
    out: Any,
) -> None:
    """By weights that are decoded to 16 bits, a piece at a time."""
    K = x.shape[1]
    halved = folded(weights[0].form)
    kind = np.dtype(np.float16) if halved else x.dtype
    form = Form("f16" if kind == np.float16 else "bf16")
    inputs = Halves.room(backend, x) if halved else Halves(x, None)
    rows = decoded_rows(sum(w.N for w in weights), K)
    room, factors = backend.empty((rows, K), kind), backend.empty((rows,), np.float32)
    if inputs.powers is not None:
        halve(backend, x, inputs, weights)
    start = 0
    for piece in _pieces(weights, biases, rows):
        parts = [part for part, _ in piece]
        ends = np.cumsum([part.N for part in parts])
        decode(backend, parts, room, factors)
        made = [
            Stored(form, (room[end - part.N : end], *NO_PLANES[1:]), part.N, K)
            for part, end in zip(parts, ends.tolist(), strict=True)
        ]
        to = slice(start, start + int(ends[-1]))
        plan = pick_warpgroups(backend, made, x.shape[0])
        _multiply(
            backend, inputs, made, factors, [bias for _, bias in piece],
            None if residual is None else residual[:, to], out[:, to], plan, False,
        )  # fmt: skip
        start = to.stop


def _pieces(
    weights: list[Stored], biases: list[Any], rows: int
) -> Iterator[list[tuple[Stored, Any]]]:
    """Weights side by side, with their biases, in pieces of so many rows."""
    piece, room = [], rows
    for w, bias in zip(weights, biases, strict=True):
        start = 0
        while start < w.N:
            end = min(w.N, start + room)
            piece.append((w.rows(start, end), None if bias is None else bias[start:end]))
            room -= end - start
            start = end
            if not room:
                yield piece
                piece, room = [], rows
    if piece:
        yield piece


def _multiply(
    backend: CupyBackend,
    inputs: tuple[Any, Any],
    weights: list[Stored],
    factors: Any,
    biases: list[Any],
    residual: Any,
    out: Any,
    plan: Warpgroups,
    early: bool,
) -> None:
    """Launch it: inputs are x as the kernel reads it and scales [M] of its rows or None; factors:
    more scales, of the weights' rows [sum of N], or None."""
    x, x_scales = inputs
    M, first = x.shape[0], weights[0]
    rows = 64 * plan.groups
    width, high = plan.row_bytes(first.form)
    maps = [tensor_map(w.codes, (rows, width // w.codes.itemsize), width) for w in weights]
    highs = [tensor_map(w.planes[1], (rows, high), high) for w in weights] if high else maps
    pair = 2 if plan.stays(first.form) else 1
    x_map = tensor_map(x, (plan.tokens // pair, 128 // x.itemsize))
    three = [*weights, *[None] * (3 - len(weights))]
    tiles = sum(-(-w.N // rows) for w in weights)
    blocks = -(-tiles // pair) * pair * -(-M // plan.tokens)
    if pair > 1:
        blocks = min(blocks, backend.caps.sms // pair * pair)
    given = [b for b in biases if b is not None]
    backend.launch(
        "gemm_sm90", "gemm_sm90", (blocks, plan.shares),
        (128 * plan.groups + (128 if plan.tokens >= 128 else 32),),
        [
            *maps, *maps[:1] * (3 - len(maps)), *highs, *highs[:1] * (3 - len(highs)), x_map,
            x_scales, factors,
            *(p for w in three for p in (w.planes if w else NO_PLANES)),
            *biases, *[None] * (3 - len(biases)),
            *(w.N if w else 0 for w in three), residual, out,
            np.int64(out.strides[0] // out.itemsize if M > 1 else out.shape[1]), M, weights[0].K,
            int(in_fours(out, residual)), int(early),
        ],
        shared_bytes=plan.shared_bytes(first.form), dependent=True,
        **type_macros(backend, x, first, out, given[0] if given else None, residual)
        | _number_table(first.form) | plan.defines(),
        WHOLE=int(weights[0].K % (128 if plan.few else 64) == 0),
    )  # fmt: skip


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
    (Form("bf16"), Warpgroups(2, 128, 6)), (Form("f16"), Warpgroups(2, 256, 4)),
    *((scheme_form(SCHEMES[scheme]), plan) for scheme, plan in (
        ("int8", Warpgroups(1, 32, 4, 8)), ("int8", Warpgroups(2, 64, 6, 5)),
        ("int8", Warpgroups(2, 128, 8, 3)), ("int8", Warpgroups(2, 256, 5)),
        ("int8-g32", Warpgroups(2, 128, 8)), ("int8-g32", Warpgroups(2, 256, 5)),
        ("int8-g128", Warpgroups(2, 256, 5)), ("q4_0", Warpgroups(2, 256, 5)),
        ("q4_1", Warpgroups(2, 256, 5)), ("q6_k", Warpgroups(2, 256, 4)),
        ("w8a8", Warpgroups(1, 32, 4, 2)), ("w8a8", Warpgroups(2, 256, 4)),
        ("int8", Warpgroups(2, 64, 3, 7, 2, True)),
        ("int8-g32", Warpgroups(2, 32, 8, 3, 1, True)),
        ("int8-g128", Warpgroups(2, 32, 4, 3, 1, True)), ("fp8", Warpgroups(2, 16, 5, 6, 2, True)),
        ("int4-g128", Warpgroups(2, 8, 8, 6, 2, True)),
        ("int4-g128", Warpgroups(2, 64, 4, 1, 2, True)),
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
        halved = form.codes == "f16" or (folded(form) and not plan.few)
        defines = {
            **same, **form_macros(form), **_number_table(form), **plan.defines(),
            "X": "i8" if form.rounds_input else "f16" if halved else "bf16", "WHOLE": 1,
        }  # fmt: skip
        made.append(Variant("gemm_sm90", defines, only="sm_90a"))
    return made


VARIANTS = _variants()
