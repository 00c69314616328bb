"""Launches of `gemm_sm90.cu`: matrix products of packed weights, and of few tokens, on Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from boostr.backends.cupy.gemm import (
    FLOAT,
    INT8,
    INT8_GROUPS,
    W8A8,
    Stored,
    in_fours,
    quantize_rows,
    type_macros,
)
from boostr.backends.cupy.kernels import Variant
from boostr.backends.cupy.tensor_map import tensor_map


@dataclass(frozen=True)
class Warpgroups:
    """How `gemm_sm90.cu` is cut up; see there."""

    groups: int
    tokens: int
    stages: int
    shares: int = 1
    depth: int = 64

    def shared_bytes(self, form: int) -> int:
        stage = _stage_bytes(form, self.groups, self.tokens, self.depth)
        tile = self.tokens * (64 * self.groups + 4) * 4
        return max(stage * self.stages, tile) + 1024  # the ring begins at a multiple of 1024


def _stage_bytes(form: int, groups: int, tokens: int, depth: int) -> int:
    if form == W8A8:
        return (64 * groups + tokens) * depth
    return 64 * groups * depth * (2 if form == FLOAT else 1) + tokens * 2 * depth


def pick_warpgroups(backend: Any, form: int, rows: list[int], M: int, K: int) -> Warpgroups:
    """For weights of so many rows each and M tokens."""
    sms, steps = backend.caps.sms, -(-K // (128 if form == W8A8 else 64))
    if M <= 64:
        tokens, room, blocks = next(t for t in (8, 16, 32, 64) if t >= M), 104 << 10, 2 * sms
    else:
        few = sum(-(-n // 128) for n in rows) * -(-M // 256) < sms // 2
        tokens, room, blocks = 128 if few or form == INT8_GROUPS else 256, 208 << 10, sms
    groups, tiles = 2, 0
    for groups in (2, 1) if M <= 64 else (2,):
        tiles = sum(-(-n // (64 * groups)) for n in rows) * -(-M // tokens)
        if tiles * 8 >= blocks:
            break
    depth = 128 if form == W8A8 else 64
    stages = min(room // _stage_bytes(form, groups, tokens, depth), 8)
    shares = max(1, min(8, blocks // tiles, steps // 4))
    return Warpgroups(groups, tokens, stages, shares, depth)


def hopper_takes(backend: Any, w: Stored, M: int) -> bool:
    """Whether `hopper` should multiply arguments that `tensor_cores_take`."""
    return backend.caps.compute_capability == 90 and (w.form != FLOAT or M <= 64)


def hopper(
    backend: Any,
    x: Any,
    weights: list[Stored],
    biases: list[Any],
    residual: Any,
    out: Any,
    plan: Warpgroups | None = None,
    early: bool = False,
    rotate: bool = True,
) -> None:
    """As `mma`, by warpgroup products."""
    M, K = x.shape
    first = weights[0]
    x_scales = None
    if first.form == W8A8:
        x, x_scales = quantize_rows(backend, x)
    plan = plan or pick_warpgroups(backend, first.form, [w.N for w in weights], M, K)
    rows = 64 * plan.groups
    width = plan.depth * first.rows.itemsize  # bytes of a row in a stage
    maps = [tensor_map(w.rows, (rows, plan.depth), width) for w in weights]
    x_map = tensor_map(x, (plan.tokens, 128 // x.itemsize))
    three = [*weights, *[None] * (3 - len(weights))]
    tiles = sum(-(-w.N // rows) for w in weights) * -(-M // plan.tokens)
    given = [b for b in biases if b is not None]
    backend.launch(
        "gemm_sm90", "gemm_sm90", (tiles, plan.shares),
        (128 * plan.groups + (128 if plan.tokens >= 128 else 32),),
        [
            *maps, *maps[:1] * (3 - len(maps)), x_map, x_scales,
            *(w and w.scales for w in three), *biases, *[None] * (3 - len(biases)),
            *(w.N if w else 0 for w in three), residual, out,
            np.int64(out.strides[0] // out.itemsize if M > 1 else out.shape[1]), M, K,
            first.scales.shape[1] if first.scales is not None else 0,
            int(in_fours(out, residual)), int(early), int(rotate),
        ],
        shared_bytes=plan.shared_bytes(first.form), dependent=True,
        GROUPS=plan.groups, TOKENS=plan.tokens, STAGES=plan.stages, SHARES=plan.shares,
        BK=plan.depth,
        **type_macros(backend, x, first, out, given[0] if given else None, residual),
    )  # fmt: skip


_WARPGROUPS_TO_COMPILE = [
    (FLOAT, Warpgroups(2, 32, 5, 4)), (INT8, Warpgroups(2, 32, 5, 4, 128)),
    (INT8_GROUPS, Warpgroups(2, 32, 5, 4, 128)), (W8A8, Warpgroups(2, 32, 5, 4, 128)),
    (INT8, Warpgroups(2, 128, 6, 3)), (INT8_GROUPS, Warpgroups(2, 128, 6, 3)),
    (INT8, Warpgroups(2, 256, 5)), (W8A8, Warpgroups(2, 256, 4, 1, 128)),
    (INT8, Warpgroups(1, 8, 8, 8)), (FLOAT, Warpgroups(1, 64, 4, 8)),
]  # fmt: skip


def _variants() -> list[Variant]:
    same: dict[str, Any] = dict.fromkeys(("X", "OUT", "BIAS", "RESIDUAL"), "bf16")
    made = []
    for form, plan in _WARPGROUPS_TO_COMPILE:
        defines = {
            **same, "X": "i8" if form == W8A8 else "bf16", "FORM": form, "GROUPS": plan.groups,
            "TOKENS": plan.tokens, "STAGES": plan.stages, "SHARES": plan.shares, "BK": plan.depth,
        }  # fmt: skip
        if form == INT8_GROUPS:
            defines["GROUP"] = 32
        made.append(Variant("gemm_sm90", defines, only="sm_90a"))
    return made


VARIANTS = _variants()
