"""Products on tensor cores: `gemm_matrix.wgsl`, where the device has subgroup matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from itertools import product as each
from typing import TYPE_CHECKING

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.products.gemm_ends import Ends, finish, parameters
from boostr.backends.wgpu.products.gemm_operands import Operand
from boostr.backends.wgpu.products.planes import FORMS
from boostr.backends.wgpu.runtime import wgsl
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.quant.forms import W8A8, Form

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_HALF, _INT8 = ("f16", "f32"), ("i8", "i32")
_FEWEST = 16  # rows for which columns of w are read once more, for their largest numbers
_CORES, _MULTIPLIES = 132, 2048  # an H100's; of a core in a clock


@dataclass(frozen=True)
class MatrixTile:
    """What a workgroup of `gemm_matrix.wgsl` makes; see there. rate: the share of the peak."""

    BM: int
    BN: int
    BK: int
    WM: int
    WN: int
    rate: float = 0.5

    def threads(self, lanes: int) -> int:
        return self.BM // self.WM * (self.BN // self.WN) * lanes

    def shared_bytes(self, lanes: int, integers: bool) -> int:
        line = self.depth(integers) // (16 if integers else 8) + 1
        strips = self.threads(lanes) // lanes * 16 * (self.WN // 4 + 1)
        return 16 * max((self.BM + self.BN) * line, strips)

    def depth(self, integers: bool) -> int:
        """Inputs of a step: as many bytes of int8 as of f16."""
        return self.BK * 2 if integers else self.BK

    def values(self, integers: bool) -> dict[str, int]:
        names = ("BM", "BN", "WM", "WN")
        return {name: getattr(self, name) for name in names} | {"BK": self.depth(integers)}


@dataclass(frozen=True)
class MatrixPlan:
    tile: MatrixTile
    splits: int = 1


LARGE = MatrixTile(128, 128, 32, 64, 64, rate=0.25)
TILES = (
    LARGE, MatrixTile(64, 128, 32, 32, 64, rate=0.16), MatrixTile(64, 64, 64, 32, 32, rate=0.145),
    MatrixTile(32, 128, 64, 32, 32, rate=0.1), MatrixTile(16, 128, 64, 16, 32, rate=0.06),
)  # fmt: skip


@lru_cache(4096)
def choose(caps: Caps, M: int, N: int, K: int, room: int, integers: bool) -> MatrixPlan:
    """The plan with the least estimated time."""
    lanes = caps.subgroup_max
    best, least = MatrixPlan(TILES[-1]), math.inf
    for tile, splits in each(TILES, (1, 2, 3, 4, 6, 8)):
        if tile.shared_bytes(lanes, integers) > caps.workgroup_bytes or splits > room:
            continue
        depth = tile.depth(integers)
        if splits > max(1, K // (4 * depth)) or tile.threads(lanes) > caps.workgroup_threads:
            continue
        groups = -(-M // tile.BM) * -(-N // tile.BN) * splits
        each_core = -(-groups // _CORES)
        busy = min(1.0, 0.35 + 0.65 * each_core * tile.threads(lanes) / 256)
        length = -(-K // (splits * depth)) * depth + 2 * depth
        clocks = each_core * tile.BM * tile.BN * length / (_MULTIPLIES * tile.rate * busy)
        clocks += 4000 + 5e-3 * splits * M * N if splits > 1 else 0
        if clocks < least:
            best, least = MatrixPlan(tile, splits), clocks
    return best


def shape(caps: Caps, integers: bool) -> tuple[int, int, int] | None:
    """(M, N, K) of the matrices that the device multiplies, if the kernel can use them."""
    wanted = _INT8 if integers else _HALF
    for component, result, M, N, K in caps.matrices:
        if (component, result) == wanted and M == N == 16 and K in (16, 32):
            return M, N, K
    return None


def takes(backend: WgpuBackend, x: Operand, w: Operand, y: GpuArray) -> str | None:
    """None if tensor cores can make y = x · wᵀ exactly enough, else why not."""
    caps, integers = backend.caps, x.form.rounds_input
    if shape(caps, integers) is None or caps.subgroup_min != caps.subgroup_max:
        return "no matrices of 16 x 16 in subgroups of one size"
    if not integers and (x.name not in ("f16", "bf16") or w.name == "f32"):
        return "float32 has no matrices"
    if not (w.form.is_float or w.form.row_scaled) and y.dtype == dtypes.float32:
        return "a float32 result of scaled weights needs float32 products"
    if x.batch or w.batch or y.shape[0] != 1:
        return "batches"
    if (x.across and not w.across) or (w.across and x.rows < _FEWEST):
        return "lines of x alone across, or few rows"
    unit = 16 if integers else 8
    lengths = [x.rows if x.across else x.inputs, *((w.rows,) if w.across else ())]
    places = [w.array.offset, w.line]
    if integers or x.across:
        places += [x.array.offset, x.line]
    if y.shape[-1] % 4 or any(n % unit for n in lengths + places):
        return "rows off 16 bytes"
    return None


def product(
    backend: WgpuBackend, x: Operand, w: Operand, ends: Ends, y: GpuArray, N: int, column: int,
    again: Callable[[GpuArray], None], plan: MatrixPlan | None = None,
) -> None:  # fmt: skip
    """Columns `column` to `column + N` of y [1, M, all] by tensor cores.

    again: makes the product in float32, unless the array that it is given holds 0: weights beyond
    the range of f16 are found on the device while they are read.
    """
    M, width = y.shape[1:]
    integers, K = x.form.rounds_input, x.inputs
    room = min(backend.caps.binding_bytes // (4 * M * width), 16)
    plan = plan or choose(backend.caps, M, N, K, room, integers)
    # numbers that can lie beyond f16: the product is made again if one does
    guarded = not w.across and (
        w.name == "bf16" or not (w.form.is_float or (w.form.row_scaled and not w.form.table))
    )
    places = (x.array.offset, x.line)
    flag = None
    scaled = ends
    if w.across:
        x, powers = _across(backend, x, w)
        scaled = Ends(ends.bias, ends.residual, powers)
    elif not integers and (x.name != "f16" or guarded or any(n % 8 for n in places)):
        x_scale, flag = backend.empty((M,), np.float32), backend.empty((1,), np.uint32)
        x = _halves(backend, x, x_scale, flag)
        scaled = Ends(ends.bias, ends.residual, x_scale)
    depth = plan.tile.depth(integers)
    steps = -(-K // depth)
    share = -(-steps // plan.splits)
    splits = -(-steps // share)
    result = dtypes.int32 if integers else dtypes.float32
    part = backend.empty((splits * M, width), result) if splits > 1 else y
    _launch(backend, x, w, scaled, part, plan.tile, (M, N, share, splits, column),
            flag if guarded else None)  # fmt: skip
    if splits > 1:
        finish(backend, part, ends, y, splits, w.row_scales)
    if guarded and flag is not None:
        again(flag)


def _launch(
    backend: WgpuBackend, x: Operand, w: Operand, ends: Ends, part: GpuArray, tile: MatrixTile,
    sizes: tuple[int, int, int, int, int], flag: GpuArray | None,
) -> None:  # fmt: skip
    M, N, share, splits, column = sizes
    caps, integers = backend.caps, x.form.rounds_input
    found = shape(caps, integers)
    MM, MN, MK = found or (16, 16, 16)
    split = splits > 1
    scales = [] if ends.x_scale is None or (integers and split) else [ends.x_scale]
    backend.launch(
        "gemm_matrix", "gemm", (-(-M // tile.BM), -(-N // tile.BN), splits),
        [x.array, *w.reads(), *scales, *([] if split else ends.tail())],
        [part] if flag is None else [part, flag],
        parameters(backend, x, w, 8, ends, part, (N, x.inputs, share, splits, column)),
        X=x.name, FORM=w.form, X_ACROSS=x.across, W_ACROSS=w.across,
        FULL=x.inputs % tile.depth(integers) == 0,
        X_SCALED=ends.x_scale is not None and not integers,
        SPLIT=split, OUT=wgsl.name_of(part.dtype), **ends.values(not split),
        LANES=caps.subgroup_max, MM=MM, MN=MN, MK=MK, **tile.values(integers),
    )  # fmt: skip


def _across(backend: WgpuBackend, x: Operand, w: Operand) -> tuple[Operand, GpuArray]:
    """x, its rows in f16 unless they lie across; what to multiply them by and, behind, columns."""
    powers = backend.empty((x.rows + w.rows,), np.float32)
    _powers(backend, w, powers, x.rows)
    if x.across:
        _powers(backend, x, powers, 0)
        return x, powers
    return _halves(backend, x, powers, backend.empty((1,), np.uint32)), powers


def _powers(backend: WgpuBackend, x: Operand, powers: GpuArray, start: int) -> None:
    """powers[start:] of x's rows, which lie across."""
    backend.launch(
        "gemm_matrix_powers", "powers", -(-x.rows // 16), [x.array], [powers],
        (x.rows, x.inputs, backend.offset(x.array), x.line, backend.offset(powers) + start),
        X=x.name,
    )  # fmt: skip


def _halves(backend: WgpuBackend, x: Operand, scale: GpuArray, flag: GpuArray) -> Operand:
    """Rows of x in f16; scale: what to multiply them by, flag: a 0."""
    M, K = x.rows, x.inputs
    if x.array.offset % 4 or x.line % 4:
        x = Operand.of_matrix(backend, backend.copy(x.array))
    y = backend.empty((M, K), np.float16)
    backend.launch(
        "gemm_matrix_rows", "rows", M, [x.array], [y, scale, flag],
        (M, K, backend.offset(x.array), x.line), X=x.name,
    )  # fmt: skip
    return Operand(y, Form("f16"), M, K, K)


_COMMON = {
    "LANES": 32, "MM": 16, "MN": 16, "MK": 16, "X": "f16", "X_ACROSS": False, "W_ACROSS": False,
    "X_SCALED": True, "SPLIT": False, "FULL": True, "OUT": "bf16", "BIAS": "", "RESIDUAL": "",
}  # fmt: skip
_NEEDS = ("matrices",)
VARIANTS = [
    *(
        Variant("gemm_matrix", {**_COMMON, "FORM": form, **tile.values(False)}, _NEEDS)
        for form, tile in zip(
            (f for f in FORMS if f.codes != "f32" and not f.rounds_input), cycle(TILES)
        )
    ),
    Variant("gemm_matrix", {
        **_COMMON, "FORM": Form("bf16"), **TILES[1].values(False), "SPLIT": True, "OUT": "f32",
        "FULL": False}, _NEEDS),
    Variant("gemm_matrix", {
        **_COMMON, "FORM": Form("f16"), **LARGE.values(False), "X_SCALED": False, "OUT": "f16",
        "BIAS": "f32", "RESIDUAL": "f16"}, _NEEDS),
    *(
        Variant("gemm_matrix", {
            **_COMMON, "X": "words", "FORM": W8A8, "MK": 32, "X_SCALED": False, "SPLIT": split,
            "OUT": out, **LARGE.values(True)}, _NEEDS)
        for split, out in ((False, "bf16"), (True, "i32"))
    ),
    *(
        Variant("gemm_matrix", {
            **_COMMON, "X": kind if x else "f16", "FORM": Form(kind), "X_ACROSS": x,
            "W_ACROSS": True, **tile.values(False), "SPLIT": x, "OUT": "f32" if x else "bf16",
            "FULL": full}, _NEEDS)
        for tile in TILES
        for x, kind, full in ((False, "bf16", True), (True, "bf16", True), (True, "f16", False))
    ),
    *(Variant("gemm_matrix_rows", {"X": x}) for x in ("f32", "f16", "bf16")),
    *(Variant("gemm_matrix_powers", {"X": x}) for x in ("f16", "bf16")),
]  # fmt: skip
