"""Launches of `gemm_sm90.cu`: matrix products of packed weights, and of few tokens, on Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.products.gemm import (
    aligned,
    in_fours,
    kind_of,
    mma_refusal,
    quantize_rows,
    type_macros,
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
from boostr.quant.scheme import FIELDS, SCHEMES

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


@dataclass(frozen=True)
class Warpgroups:
    """How `gemm_sm90.cu` is cut up; see there."""

    groups: int
    tokens: int
    stages: int
    shares: int = 1

    def shared_bytes(self, form: Form) -> int:
        stage = _stage_bytes(form, self.groups, self.tokens)
        tile = self.tokens * (64 * self.groups + 4) * 4
        return max(stage * self.stages, tile) + 1024  # the ring begins at a multiple of 1024

    def defines(self) -> dict[str, int]:
        return {
            "GROUPS": self.groups, "TOKENS": self.tokens, "STAGES": self.stages,
            "SHARES": self.shares,
        }  # fmt: skip


def _stage_bytes(form: Form, groups: int, tokens: int) -> int:
    return 64 * groups * _row_bytes(form) + tokens * 128


def _row_bytes(form: Form) -> int:
    """Of a row of codes in a stage."""
    if form.is_float or form.rounds_input:
        return 128
    return 8 * FIELDS.get(int(form.codes[1]), (8,))[0] if form.codes != "e4m3" else 64


# Few tokens, measured on an H100: KiB of the ring and blocks on a multiprocessor. A ring of half of
# its memory leaves room for the next kernel's first weights.
_FEW = {"float": (72, 2), "rows": (36, 4), "rounds": (52, 2)}
FEW_TOKENS = 64


def pick_warpgroups(
    backend: CupyBackend, form: Form, rows: list[int], M: int, K: int
) -> Warpgroups:
    """For weights of so many rows each and M tokens."""
    kind, rounds = kind_of(form), form.rounds_input
    sms, steps = backend.caps.sms, -(-K // (128 if rounds else 64))
    groups, room, blocks = 2, 104 << 10, 2 * sms
    if M > FEW_TOKENS:
        few = M <= 128 or sum(-(-n // 128) for n in rows) * -(-M // 256) < sms // 2
        tokens, room, blocks = 128 if few else 256, 208 << 10, sms
    else:
        tokens = next(t for t in (8, 16, 32, 64) if t >= M)
        if kind in _FEW and (M <= 32 or rounds):
            groups, room, blocks = 1, _FEW[kind][0] << 10, _FEW[kind][1] * sms
        elif sum(-(-n // 128) for n in rows) * 8 < blocks:
            groups = 1
    tiles = sum(-(-n // (64 * groups)) for n in rows) * -(-M // tokens)
    stages = min(room // _stage_bytes(form, groups, tokens), 8)
    least = 2 if rounds else 4  # steps that a share is worth
    return Warpgroups(groups, tokens, stages, max(1, min(8, blocks // tiles, steps // least)))


def hopper_takes(backend: CupyBackend, weights: list[Stored], M: int) -> bool:
    """Whether `hopper` should multiply arguments that `tensor_cores_take`.

    Up to 16 tokens `gemm.mma` is faster by codes (1.05 to 1.8 times on an H200), and up to 32 by
    matrices of a block a multiprocessor, or of super-scales (1.1 to 1.5 times).
    """
    form, caps = weights[0].form, backend.caps
    if caps.compute_capability != 90 or form.super % 64:
        return False
    if form.is_float:
        return M <= 32
    small = bool(form.super) or sum(w.N for w in weights) <= 64 * caps.sms
    most = 32 if small else 16
    return most < M or form.rounds_input or mma_refusal(form) is not None


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
    if first.form.rounds_input:
        x, x_scales = quantize_rows(backend, x)
    elif folded(first.form):
        x, x_scales, downs = halves(backend, x, weights)
    plan = plan or pick_warpgroups(backend, first.form, [w.N for w in weights], M, K)
    rows = 64 * plan.groups
    width = _row_bytes(first.form)
    maps = [tensor_map(w.codes, (rows, width // w.codes.itemsize), width) for w in weights]
    x_map = tensor_map(x, (plan.tokens, 128 // x.itemsize))
    three = [*weights, *[None] * (3 - len(weights))]
    tiles = sum(-(-w.N // rows) for w in weights) * -(-M // plan.tokens)
    given = [b for b in biases if b is not None]
    backend.launch(
        "gemm_sm90", "gemm_sm90", (tiles, plan.shares),
        (128 * plan.groups + (128 if plan.tokens >= 128 else 32),),
        [
            *maps, *maps[:1] * (3 - len(maps)), x_map, x_scales, downs,
            *(p for w in three for p in (w.planes if w else NO_PLANES)),
            *biases, *[None] * (3 - len(biases)),
            *(w.N if w else 0 for w in three), residual, out,
            np.int64(out.strides[0] // out.itemsize if M > 1 else out.shape[1]), M, K,
            int(in_fours(out, residual)), int(early),
        ],
        shared_bytes=plan.shared_bytes(first.form), dependent=True,
        **type_macros(backend, x, first, out, given[0] if given else None, residual)
        | half_table(first.form) | plan.defines(), WHOLE=int(K % 64 == 0),
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
def half_table(form: Form) -> dict[str, str]:
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
        ("int8-g32", Warpgroups(2, 32, 8, 5)), ("int8-g32", Warpgroups(2, 128, 8)),
        ("int8-g32", Warpgroups(2, 256, 5)), ("int8-g128", Warpgroups(2, 32, 8, 5)),
        ("int8-g128", Warpgroups(2, 256, 5)), ("q4_0", Warpgroups(2, 32, 8, 5)),
        ("q4_0", Warpgroups(2, 256, 5)), ("q4_1", Warpgroups(2, 256, 5)),
        ("q6_k", Warpgroups(2, 256, 4)),
        ("w8a8", Warpgroups(1, 32, 4, 2)), ("w8a8", Warpgroups(2, 256, 4)),
    )),
    *((form, Warpgroups(2, 256, 5)) for form in SNIPPETS.values()),
]  # fmt: skip


def _variants() -> list[Variant]:
    same: dict[str, Any] = dict.fromkeys(("X", "OUT", "BIAS", "RESIDUAL"), "bf16")
    made = []
    for form, plan in _TO_COMPILE:
        x = "i8" if form.rounds_input else "f16" if folded(form) else "bf16"
        defines = {
            **same,
            **form_macros(form),
            **half_table(form),
            **plan.defines(),
            "X": x,
            "WHOLE": 1,
        }
        made.append(Variant("gemm_sm90", defines, only="sm_90a"))
    prepared = ({"X": "bf16", **_halves_macros(form)} for form in SNIPPETS.values())
    return [*made, *(Variant("gemm_halves", defines) for defines in prepared)]


VARIANTS = _variants()
