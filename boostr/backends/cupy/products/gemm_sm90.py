"""Launches of `gemm_sm90.cu`: matrix products of packed weights, and of few tokens, on Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.cupy.products.gemm import in_fours, kind_of, quantize_rows, type_macros
from boostr.backends.cupy.products.stored import Stored, form_macros
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.backends.cupy.runtime.tensor_map import tensor_map
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

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


def _stage_bytes(form: Form, groups: int, tokens: int) -> int:
    return 64 * groups * _row_bytes(form) + tokens * 128


def _row_bytes(form: Form) -> int:
    """Of a row of codes in a stage."""
    return 128 if form.is_float or form.rounds_input else {"c8": 64, "c4": 32}[form.codes]


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
        tokens, room, blocks = 128 if few or form.group else 256, 208 << 10, sms
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


def hopper_takes(backend: CupyBackend, w: Stored, M: int) -> bool:
    """Whether `hopper` should multiply arguments that `tensor_cores_take`."""
    form = w.form
    simple = form.codes in ("c8", "c4") and not (form.offsets or form.super)
    taken = M <= 32 if form.is_float else simple
    return backend.caps.compute_capability == 90 and taken


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
    x_scales = None
    if first.form.rounds_input:
        x, x_scales = quantize_rows(backend, x)
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
            *maps, *maps[:1] * (3 - len(maps)), x_map, x_scales,
            *(w and w.planes[2] for w in three), *biases, *[None] * (3 - len(biases)),
            *(w.N if w else 0 for w in three), residual, out,
            np.int64(out.strides[0] // out.itemsize if M > 1 else out.shape[1]), M, K,
            int(in_fours(out, residual)), int(early),
        ],
        shared_bytes=plan.shared_bytes(first.form), dependent=True,
        GROUPS=plan.groups, TOKENS=plan.tokens, STAGES=plan.stages, SHARES=plan.shares,
        **type_macros(backend, x, first, out, given[0] if given else None, residual),
    )  # fmt: skip


_TO_COMPILE = [
    (Form("bf16"), Warpgroups(1, 32, 6, 4)), (Form("bf16"), Warpgroups(1, 8, 8, 8)),
    *((scheme_form(SCHEMES[scheme]), plan) for scheme, plan in (
        ("int8", Warpgroups(1, 32, 4, 8)), ("int8", Warpgroups(2, 64, 6, 5)),
        ("int8", Warpgroups(2, 128, 8, 3)), ("int8", Warpgroups(2, 256, 5)),
        ("int8-g32", Warpgroups(2, 32, 8, 5)), ("int8-g32", Warpgroups(2, 128, 8)),
        ("int8-g128", Warpgroups(2, 32, 8, 5)), ("int8-g128", Warpgroups(2, 128, 8)),
        ("q8_0", Warpgroups(2, 32, 8, 5)), ("q8_0", Warpgroups(2, 128, 8)),
        ("q4_0", Warpgroups(2, 32, 8, 5)), ("q4_0", Warpgroups(2, 128, 8)),
        ("w8a8", Warpgroups(1, 32, 4, 2)), ("w8a8", Warpgroups(2, 256, 4)),
    )),
]  # fmt: skip


def _variants() -> list[Variant]:
    same: dict[str, Any] = dict.fromkeys(("X", "OUT", "BIAS", "RESIDUAL"), "bf16")
    made = []
    for form, plan in _TO_COMPILE:
        defines = {
            **same, **form_macros(form), "X": "i8" if form.rounds_input else "bf16",
            "GROUPS": plan.groups, "TOKENS": plan.tokens, "STAGES": plan.stages,
            "SHARES": plan.shares,
        }  # fmt: skip
        made.append(Variant("gemm_sm90", defines, only="sm_90a"))
    return made


VARIANTS = _variants()
