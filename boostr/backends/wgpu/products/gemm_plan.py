"""How a product is cut: tiles of `gemm.wgsl`, splits of K, and every specialisation of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as each
from typing import Any

from boostr.backends.wgpu.products.planes import FORMS, PACKED
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.quant.forms import W8A8, Form

_CORES = {"discrete": 132, "integrated": 16, "software": 1}  # an H100's; WebGPU names no number
_MULTIPLIES = 128  # of a core in a clock


@dataclass(frozen=True)
class Tile:
    """What a workgroup of `gemm.wgsl` makes; see there. rate: the share of the peak it reaches."""

    BM: int
    BN: int
    TM: int
    TN: int
    BK: int = 16
    STAGES: int = 1
    UNROLL: int = 16
    WEAVE: bool = True
    rate: float = 0.65

    @property
    def threads(self) -> int:
        return self.BM // self.TM * (self.BN // self.TN)

    @property
    def shared_bytes(self) -> int:
        return 4 * self.BK * (self.BM + self.BN) * max(self.STAGES, 1)

    def values(self) -> dict[str, int]:
        names = ("BM", "BN", "TM", "TN", "BK", "STAGES", "UNROLL", "WEAVE")
        return {name: getattr(self, name) for name in names}


LARGE = Tile(128, 128, 8, 8)
TILES = (
    LARGE, Tile(64, 128, 8, 8, rate=0.6), Tile(64, 64, 8, 8, rate=0.55),
    Tile(32, 128, 4, 8, rate=0.5), Tile(16, 128, 4, 8, rate=0.4),
)  # fmt: skip
# LARGE of f32 by f32, whose raw words take twice the registers: 40 TFLOP/s at 4096³ on an H100
# (LARGE itself 35; with loads without ends, which 16-bit operands gain from, 38)
WIDE = Tile(128, 128, 8, 16)
# LARGE of int8 by int8, exact: 91 Tera-operations a second on an H100 (LARGE itself 79)
TWICE = Tile(128, 128, 8, 8, BK=8, STAGES=2, UNROLL=8)
DIRECT = Tile(32, 32, 4, 4, rate=0.1)  # `gemm_direct.wgsl`
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Plan:
    """A tile, and into how many parts K is cut."""

    tile: Tile
    splits: int = 1


@lru_cache(4096)
def choose(caps: Caps, M: int, N: int, units: int, batches: int, room: int) -> Plan:
    """The plan with the least estimated time.

    Args:
        units: length of the sums in steps of the kernel.   room: the most splits that a slab of
            parts has memory for.
    """
    if caps.kind == "software" or M * N * units * batches < 1 << 16:
        return Plan(DIRECT)
    cores = _CORES[caps.kind]
    best, least = Plan(DIRECT), math.inf
    for tile, splits in each(TILES, _SPLITS):
        if tile.shared_bytes > caps.workgroup_bytes or tile.threads > caps.workgroup_threads:
            continue
        if splits > room or splits > max(1, units // (4 * tile.BK)):
            continue
        groups = -(-M // tile.BM) * -(-N // tile.BN) * batches * splits
        each_core = -(-groups // cores)
        # too few threads hide no latency
        busy = min(1.0, 0.45 + each_core * tile.threads / 500)
        depth = -(-units // (splits * tile.BK)) * tile.BK + 48
        clocks = each_core * tile.BM * tile.BN * depth / (_MULTIPLIES * tile.rate * busy)
        if splits > 1:
            clocks += 6000 + 4.5e-3 * splits * M * N * batches  # another dispatch, and its bytes
        if clocks < least:
            best, least = Plan(tile, splits), clocks
    return best


_F32, _BF16 = Form("f32"), Form("bf16")


def _variant(X: str = "f32", form: Form = _F32, tile: Tile = LARGE, **changes: Any) -> Variant:
    """A specialisation; the rest of its values is the plainest."""
    values: dict[str, Any] = {
        "X": X, "X_WHOLE": True, "X_ACROSS": False, "FORM": form, "W_WHOLE": True,
        "W_ACROSS": False, "SPLIT": False, "OUT": "f32", "OUT_WHOLE": True, "BIAS": "",
        "RESIDUAL": "", "GUARD": False, "FULL": False, **tile.values(), **changes,
    }  # fmt: skip
    direct = tile == DIRECT
    return Variant("gemm_direct" if direct else "gemm", values)


_FORMS = [form for form in FORMS if not form.rounds_input]
_ODD: dict[str, Any] = {"X_WHOLE": False, "W_WHOLE": False, "OUT_WHOLE": False}
VARIANTS = [
    *(_variant("bf16", form, OUT="bf16", FULL=True) for form in _FORMS),
    _variant("bf16", _BF16, X_ACROSS=True, W_ACROSS=True, FULL=True),
    *(_variant("f16", form, DIRECT, OUT="f16", BIAS="f32", RESIDUAL="f16") for form in _FORMS),
    *(
        _variant(form=form, tile=TILES[3], SPLIT=True, **_ODD)
        for form in _FORMS if form.codes not in PACKED
    ),
    *(_variant("words", W8A8, tile, OUT="bf16", BIAS="f32") for tile in (TWICE, DIRECT)),
    _variant("words", W8A8, TILES[2], OUT="i32", SPLIT=True, **_ODD),
    *(_variant(tile=tile, RESIDUAL="f32") for tile in (*TILES, WIDE)),
    *(
        _variant("bf16", _BF16, tile, X_ACROSS=x, W_ACROSS=w, X_WHOLE=x, W_WHOLE=not x)
        for tile in (LARGE, DIRECT) for x, w in ((True, False), (False, True), (True, True))
    ),
    _variant("bf16", _BF16, OUT="bf16", GUARD=True),
    *(
        Variant("gemm_finish", {
            "PART": part, "OUT": out, "BIAS": bias, "RESIDUAL": residual, "WHOLE": splits > 0,
            "SPLITS": splits})
        for part, out, bias, residual in (
            ("f32", "f32", "", ""), ("f32", "bf16", "bf16", "bf16"), ("i32", "f16", "f32", "f16"),
        )
        for splits in (0, 3)
    ),
]  # fmt: skip
