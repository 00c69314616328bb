"""How the decode kernels of `gemv.py` are cut up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr import dtypes

from boostr.backends.cupy.products.stored import (  # isort: skip
    OFFSET_BYTES, SCALE_BYTES, Stored, Weight, form_macros, of_integers,
)  # fmt: skip
from boostr.quant.forms import Form, form_of

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

Array = Any
C_TYPES = {dtypes.float32: "float", dtypes.float16: "f16", dtypes.bfloat16: "bf16"}
# by codes: inputs that a lane decodes at a time, and their bytes in all planes of codes
CHUNK = {
    "f32": (4, 16), "f16": (8, 16), "bf16": (8, 16), "c8": (16, 16), "e4m3": (16, 16),
    "c6": (32, 24), "c5": (32, 20), "c4": (32, 16), "c3": (64, 24), "c2": (64, 16),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a kernel is cut up; the macros of gemv_rows.cuh.

    Attributes:
        lanes: that share a row; 4 for `digits`.   per_lane: rows of a lane.   unroll: chunks of a
            lane and row in a stage.   stages: on their way at once.
        ksplit: warps that share a row.
        fetch: 1 with cp.async (sm_80), else 0.   packed: x in shared memory keeps its 16 bits.
        slow: rows are not 16-byte aligned.   cluster: blocks of a head (`qkv_rope_write`).
    """

    lanes: int = 8
    per_lane: int = 2
    unroll: int = 2
    stages: int = 4
    ksplit: int = 1
    warps: int = 8
    fetch: int = 1
    packed: bool = False
    slow: bool = False
    blocks_per_sm: int = 1
    cluster: int = 1

    @property
    def unit_rows(self) -> int:
        return 32 // self.lanes * self.per_lane

    def depth(self, form: Form) -> int:
        """Inputs of a row in a stage."""
        return CHUNK[form.codes][0] * self.lanes * self.unroll

    def ring_bytes(self, form: Form) -> int:
        if self.slow:
            return 0
        pitch = self.unroll | 1 if self.lanes == 4 else self.unroll  # of high bits; HIGH_PITCH
        row = self.unroll * 16 + pitch * (CHUNK[form.codes][1] - 16)
        stage = self.unit_rows * self.lanes * row
        for slot in self.small_slots(form):
            stage += _up(self.unit_rows * slot, 16)
        return self.warps * self.stages * stage

    def small_slots(self, form: Form) -> tuple[int, int, int, int]:
        """Bytes of a row's scales, super-scales, offsets and floors in a stage."""
        groups = self.depth(form) // form.group if form.group else 0
        supers = 4 * (self.depth(form) // form.super) if form.super else 0
        return (
            groups * SCALE_BYTES[form.scale], supers, groups * OFFSET_BYTES[form.offsets],
            supers * (form.offsets == "u8"),
        )  # fmt: skip

    def pieces(self, form: Form, of_rows: tuple[int, int]) -> dict[str, int]:
        """Bytes in which planes are copied, if rows allow `of_rows`; see `Stored.pieces`."""
        high, small = of_rows
        scales, _, offsets, _ = self.small_slots(form)
        found = {"PIECE": math.gcd(small, scales, offsets)} if form.group else {}
        size = CHUNK[form.codes][1]
        if size > 16:
            found["HIGH_PIECE"] = math.gcd(high, self.lanes * self.unroll * (size - 16))
        return found

    def digits(self, form: Form, item: int) -> bool:
        """Whether x is kept in shared memory as two digits a value."""
        return item == 2 and not self.slow and of_integers(form) and not form.rounds_input

    def x_bytes(self, form: Form, rows: int, K: int, item: int) -> int:
        stride = _up(K, self.lanes * CHUNK[form.codes][0])
        if self.digits(form, item):
            return rows * (2 * stride + stride // 4 * _block_floats(form))
        return _up(rows * stride * (1 if form.rounds_input else item if self.packed else 4), 16)

    def partial_bytes(self, rows: int) -> int:
        batch = self.ksplit if rows <= 2 else 1
        return 2 * self.warps * batch * self.unit_rows * rows * 4 if self.ksplit > 1 else 0

    def keep(self, rows: int, K: int, digits: bool) -> int:
        """How many groups of values of x a thread keeps in registers; 8 may be too few."""
        groups = -(-K // ((16 if digits else 4) * (self.warps // rows) * 32))
        return next((n for n in (1, 2, 4) if groups <= n), 8)

    def limits(self, w: Stored, units: int) -> dict[str, int | str]:
        """What is known of the loops of blocks of at most `units` units."""
        depth = self.depth(w.form)
        stages = -(-w.K // (depth * self.ksplit))
        single = units <= self.warps // self.ksplit
        return {
            "WHOLE": int(w.K % depth == 0), "SINGLE": int(single),
            "FILLED": int(single and stages <= self.stages),
        }  # fmt: skip

    def defines(
        self, form: Form, item: int, of_rows: tuple[int, int] = (16, 16)
    ) -> dict[str, int | str]:
        """of_rows: see `Stored.pieces`."""
        digits = self.digits(form, item)
        return {
            **form_macros(form), **self.pieces(form, of_rows), "DIGITS": int(digits),
            "LANES": self.lanes, "PER_LANE": self.per_lane, "UNROLL": self.unroll,
            "STAGES": self.stages, "KSPLIT": self.ksplit, "BLOCK_WARPS": self.warps,
            "FETCH": self.fetch, "PACKED": int(self.packed and not digits), "SLOW": int(self.slow),
        }  # fmt: skip


def _block_floats(form: Form) -> int:
    """Floats beside 16 inputs in digits: a scale, and a sum if something is added to codes."""
    return 2 if form.zero or form.offsets else 1


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_rows(rows: int) -> int:
    """The number of rows, 1, 2, 4 or 8, that kernels for `rows` rows are made for."""
    return 1 if rows == 1 else 2 if rows == 2 else 4 if rows <= 4 else 8


# -- how a kernel is cut up -------------------------------------------------------------------
_RING = 80 << 10  # bytes on their way to an SM; two chained kernels fit its shared memory
# rows and columns from which blocks of packed weights have an SM to themselves: layers of 8B are 10
# to 20 % faster so on an H200, those of 1B 5 to 12 % slower
_ALONE = 4096
# for a matrix such as attention's output projection: fits beside a block of decode attention, which
# takes 139 KB for heads of 128, so that its first weights arrive while attention runs
_RING_BESIDE, _BESIDE_BYTES = 64 << 10, 40 << 20
_X_BYTES = 24 << 10  # of x in shared memory as f32; more of it is kept in 16 bits
_STAGE = 3072  # most bytes of a stage of one warp
_SMALL = 64 << 10  # bytes of a weight for each SM up to which latency decides, not bandwidth
_NARROW = {32: 0.0, 16: 0.06, 8: 0.15}  # what short pieces of a row cost


class Layout(NamedTuple):
    """What a plan depends on of a weight; see `Stored`.

    Attributes:
        fast: its rows can be copied 16 bytes at a time.
    """

    form: Form
    K: int
    row_bytes: int
    fast: bool

    @classmethod
    def of(cls, w: Stored) -> Layout:
        return cls(w.form, w.K, w.row_bytes, w.aligned)


def choose(
    backend: CupyBackend, w: Stored, rows: int, count: int, item: int,
    per_lanes: tuple[int, ...] = (4, 2, 1),
) -> Plan:  # fmt: skip
    """The plan for `count` rows of a weight. item: bytes of an x value; per_lanes: see `Plan`."""
    return _choose(backend.caps, Layout.of(w), rows, count, item, per_lanes)


@cache
def _choose(
    caps: Any, w: Layout, rows: int, count: int, item: int, per_lanes: tuple[int, ...]
) -> Plan:
    """The cheapest of all ways to share the rows out, by how many warps have nothing to do."""
    plan, best = _base(caps, w, rows, item), 1e9
    beside = 1 in per_lanes and count >= w.K and count * w.row_bytes <= _BESIDE_BYTES
    inputs = CHUNK[w.form.codes][0]
    chunks = -(-w.K // inputs)
    if plan.digits(w.form, item):
        return _of_digits(caps, plan, w, rows, count, item, beside)
    small = count * w.row_bytes <= _SMALL * caps.sms
    for lanes, per_lane, warps, ksplit in _CUTS:
        if per_lane not in per_lanes or warps % rows or (rows > 2 and per_lane * rows > 16):
            continue
        if small and ((lanes, per_lane, warps) != (8, min(per_lanes), 8) or ksplit > 4):
            continue
        passes = -(-count // (32 // lanes * per_lane)) * ksplit / (caps.sms * warps)
        idle = max(1.0, math.ceil(passes)) / passes if passes < 4 else 1 + 0.5 / passes
        steps = -(-chunks // lanes)
        idle *= -(-steps // ksplit) * ksplit * lanes / chunks  # lanes and warps past the row's end
        cost = idle**0.5 + _NARROW[lanes] * min(1.0, w.row_bytes / 4096) + 0.01 / per_lane
        cost += 0.04 * math.log2(ksplit) + 0.005 * (warps - 8)
        if cost < best:
            best = cost
            plan = replace(plan, lanes=lanes, per_lane=per_lane, warps=warps, ksplit=ksplit)
    return _deepened(caps, plan, w, rows, count, item, _RING_BESIDE if beside else _RING)


def _of_digits(
    caps: Any, plan: Plan, w: Layout, rows: int, count: int, item: int, beside: bool = False
) -> Plan:
    """As many warps share a unit as leave none idle; a block of few rows of x takes less than half
    of an SM's shared memory, or just more where the matrix is `_ALONE`."""
    form, inputs = w.form, plan.lanes * CHUNK[w.form.codes][0]
    steps = -(-w.K // inputs)
    units = math.ceil(count / caps.sms / plan.unit_rows)  # of a block

    def cost(ksplit: int) -> float:
        teams = plan.warps // ksplit
        idle = math.ceil(units / teams) * teams / units
        return idle + (0.08 if form.codes == "c8" else 0.05) * math.log2(ksplit)

    alone = rows <= 2 and min(count, w.K) >= _ALONE
    least = max(1, max(form.group, form.super) // inputs)
    # asking for a stage of many planes is dear
    for unroll in (4, 2, 1) if form.offsets else (2, 1):
        unroll = max(unroll, least)
        if unroll > max(steps, least):
            continue
        ksplits = [n for n in (1, 2, 4, 8) if n == 1 or n * unroll <= steps]
        plan = replace(plan, unroll=unroll, ksplit=min(ksplits, key=cost))
        stage = replace(plan, stages=1).ring_bytes(form)
        others = plan.x_bytes(form, rows, w.K, item) + plan.partial_bytes(rows) + 1280
        half = caps.shared_bytes // 2 - others
        ring = _RING_BESIDE if beside and not alone else half if rows <= 2 else _RING
        fit = min(ring // stage + alone, (caps.shared_bytes - others) // stage)
        plan = replace(plan, stages=max(1, min(10, fit)))
        if ring >= 2 * stage:
            break
    return plan


def choose_for_block(
    backend: CupyBackend, w: Stored, rows: int, count: int, item: int, cluster: int
) -> Plan:
    """The plan where each block has `count` rows of its own, in pairs, and no others."""
    caps, layout = backend.caps, Layout.of(w)
    plan = _base(caps, layout, rows, item)
    if plan.digits(w.form, item):
        plan = _of_digits(caps, plan, layout, rows, count * caps.sms, item)
        return replace(plan, cluster=cluster)
    plan = replace(plan, lanes=32, per_lane=2, warps=16, cluster=cluster)
    while plan.ksplit < 8 and count * plan.ksplit <= plan.warps:
        plan = replace(plan, ksplit=2 * plan.ksplit)
    return _deepened(caps, plan, layout, rows, count * caps.sms, item)


def _base(caps: Any, w: Layout, rows: int, item: int) -> Plan:
    large = rows > 2 or 4 * rows * w.K > _X_BYTES
    packed = large and item == 2 and w.form.codes != "f32" and not w.form.rounds_input
    fetch = 1 if caps.compute_capability >= 80 else 0
    plan = Plan(fetch=fetch, packed=packed, slow=not w.fast)
    return replace(plan, lanes=4) if plan.digits(w.form, item) else plan


_CUTS = [
    (lanes, per_lane, warps, ksplit)
    for lanes in (32, 16, 8)
    for per_lane in (4, 2, 1)
    for warps in (8, 12, 16)
    for ksplit in (1, 2, 3, 4, 8)
    if warps % ksplit == 0
]


def _deepened(
    caps: Any, plan: Plan, w: Layout, rows: int, count: int, item: int, ring: int = _RING
) -> Plan:  # fmt: skip
    """The plan with stages of about _STAGE bytes, as many as are useful and fit."""
    inputs, size = CHUNK[w.form.codes]
    least = max(1, max(w.form.group, w.form.super) // (inputs * plan.lanes))
    most = max(least, _STAGE // (32 * size * plan.per_lane))
    chunks = -(-w.K // inputs)

    def waste(unroll: int) -> tuple[int, int, int]:
        """Whether warps, then rows, end within a stage; then the number of stages."""
        depth = plan.lanes * unroll
        stages = -(-chunks // (depth * plan.ksplit))
        return chunks % (depth * plan.ksplit) != 0, chunks % depth != 0, stages

    whole = (n for n in (1, 2, 3, 4, 6) if n <= most and n % least == 0)
    unroll = min(whole, key=waste, default=least)
    plan = replace(plan, unroll=unroll)
    steps = -(-chunks // (plan.lanes * plan.ksplit))  # of a warp in a row
    stage = replace(plan, stages=1).ring_bytes(w.form)
    left = caps.shared_bytes - plan.x_bytes(w.form, rows, w.K, item) - plan.partial_bytes(rows)
    units = -(-count // plan.unit_rows)
    passes = -(-units * plan.ksplit // (caps.sms * plan.warps))
    useful = -(-steps // unroll) * passes
    return replace(plan, stages=max(1, min(10, min(ring, left - 8192) // max(stage, 1), useful)))


def shared_bytes(
    backend: CupyBackend, plan: Plan, w: Stored, rows: int, item: int, more: int = 0
) -> int:
    """Bytes of shared memory of a launch; raises ValueError if the device has not so much."""
    need = plan.ring_bytes(w.form) + plan.x_bytes(w.form, rows, w.K, item)
    need += plan.partial_bytes(rows) + more
    if need > backend.caps.shared_bytes - 1024:
        raise ValueError(f"gemv: {rows} rows of {w.K} values need {need} bytes of shared memory")
    return need


def shared_refusal(backend: CupyBackend, weight: Weight, rows: int, dtype: Any) -> str | None:
    """Why the rows of x do not fit the shared memory beside a small ring; None if they do."""
    K, item = weight.shape[1], np.dtype(dtype).itemsize
    form = form_of(weight)
    if form is None or form.codes == "f32":
        item = 4
    elif form.rounds_input:
        item = 1
    elif of_integers(form) and item == 2:
        item = 2 + _block_floats(form) / 4
    need = padded_rows(rows) * (K + 1024) * item + (48 << 10)
    return None if need <= backend.caps.shared_bytes else f"{rows} rows of {K} values do not fit"
