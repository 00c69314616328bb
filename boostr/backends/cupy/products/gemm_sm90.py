"""Launches of `gemm_sm90.cu`: matrix products of packed weights, and of few tokens, on Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.products.gemm import (
    aligned,
    in_fours,
    kind_of,
    quantize_rows,
    term_macros,
    type_macros,
)
from boostr.backends.cupy.products.stored import (
    NO_PLANES,
    SNIPPETS,
    Stored,
    form_macros,
    of_integers,
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
    peers: int = 1

    def shared_bytes(self, form: Form) -> int:
        stage = _stage_bytes(form, self.groups, self.tokens)
        tile = self.tokens * (64 * self.groups + 4) * 4
        return max(stage * self.stages, tile) + 1024  # the ring begins at a multiple of 1024

    def defines(self) -> dict[str, int]:
        return {
            "GROUPS": self.groups, "TOKENS": self.tokens, "STAGES": self.stages,
            "SHARES": self.shares, "PEERS": self.peers,
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
        tokens, room, blocks = 128 if few or out_of_registers(form, 256) else 256, 208 << 10, sms
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
    taken = M <= 32 if w.form.is_float else w.form.super % 64 == 0
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
    x_map = tensor_map(x, (plan.tokens // plan.peers, 128 // x.itemsize))
    sums = group_sums(backend, x, first.form.group) if _summed(first.form) else None
    sums_map = x_map if sums is None else tensor_map(sums, (plan.tokens // plan.peers, 64))
    three = [*weights, *[None] * (3 - len(weights))]
    bundles = -(-sum(-(-w.N // rows) for w in weights) // plan.peers)
    given = [b for b in biases if b is not None]
    backend.launch(
        "gemm_sm90", "gemm_sm90", (bundles * plan.peers * -(-M // plan.tokens), plan.shares),
        (128 * plan.groups + (128 if plan.tokens >= 128 else 32),),
        [
            *maps, *maps[:1] * (3 - len(maps)), x_map, sums_map, x_scales,
            *(p for w in three for p in (w.planes if w else NO_PLANES)),
            *biases, *[None] * (3 - len(biases)),
            *(w.N if w else 0 for w in three), residual, out,
            np.int64(out.strides[0] // out.itemsize if M > 1 else out.shape[1]), M, K,
            int(in_fours(out, residual)), int(early),
        ],
        shared_bytes=plan.shared_bytes(first.form), dependent=True,
        **type_macros(backend, x, first, out, given[0] if given else None, residual),
        **term_macros(first.form, x.dtype), **plan.defines(),
    )  # fmt: skip


def out_of_registers(form: Form, tokens: int) -> bool:
    """Whether a warpgroup cannot hold so many tokens of this form."""
    floats = form.table and not of_integers(form)
    many = form.group == 16 or floats or (_summed(form) and form.group > 32)
    return bool(tokens > 128 and many)


def _summed(form: Form) -> bool:
    """Whether offsets are multiplied by sums of x; zeros are subtracted from codes."""
    return form.offsets not in ("", "zeros")


def group_sums(backend: CupyBackend, x: Any, group: int) -> Any:
    """Sums of x [M, K] over groups of inputs, two bf16 each: [M, 2 groups, rounded up to 16]."""
    M, K = x.shape
    groups = -(-K // (8 * group)) * 8
    sums = backend.empty((M, 2 * groups), dtypes.bfloat16)
    backend.launch(
        "gemm_sums", "group_sums", (-(-M * groups * (group // 16) // 256),), (256,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K), sums, M, K, groups,
            int(K % 8 == 0 and aligned(x)),
        ],
        dependent=True, X=backend.c_type(x.dtype), GROUP=group,
    )  # fmt: skip
    return sums


_TO_COMPILE = [
    (Form("bf16"), Warpgroups(1, 32, 6, 4)), (Form("bf16"), Warpgroups(1, 8, 8, 8)),
    *((scheme_form(SCHEMES[scheme]), plan) for scheme, plan in (
        ("int8", Warpgroups(1, 32, 4, 8)), ("int8", Warpgroups(2, 64, 6, 5)),
        ("int8", Warpgroups(2, 128, 8, 3)), ("int8", Warpgroups(2, 256, 5, peers=2)),
        ("int8-g32", Warpgroups(2, 32, 8, 5)), ("int8-g32", Warpgroups(2, 128, 8)),
        ("int8-g32", Warpgroups(2, 256, 5)), ("int8-g128", Warpgroups(2, 32, 8, 5)),
        ("int8-g128", Warpgroups(2, 256, 5)), ("q4_0", Warpgroups(2, 32, 8, 5)),
        ("q4_0", Warpgroups(2, 256, 5, peers=2)), ("q4_1", Warpgroups(2, 256, 5)),
        ("q6_k", Warpgroups(2, 128, 8)),
        ("w8a8", Warpgroups(1, 32, 4, 2)), ("w8a8", Warpgroups(2, 256, 4)),
    )),
    *((form, Warpgroups(2, 128 if out_of_registers(form, 256) else 256, 5))
      for form in SNIPPETS.values()),
]  # fmt: skip


def _variants() -> list[Variant]:
    same: dict[str, Any] = dict.fromkeys(("X", "OUT", "BIAS", "RESIDUAL"), "bf16")
    made = [Variant("gemm_sums", {"X": "bf16", "GROUP": 32})]
    for form, plan in _TO_COMPILE:
        defines = {
            **same, **form_macros(form), **term_macros(form, dtypes.bfloat16), **plan.defines(),
            "X": "i8" if form.rounds_input else "bf16",
        }  # fmt: skip
        made.append(Variant("gemm_sm90", defines, only="sm_90a"))
    return made


VARIANTS = _variants()
