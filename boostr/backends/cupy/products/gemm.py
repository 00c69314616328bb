"""Launches of our own matrix products: `gemm_mma.cu` (tensor cores), `gemm_simt.cu` (any shape),
`gemm_int8.cu` (x rounded to int8); `gemm_sm90.py` has those of Hopper. All write y [M, sum of N]
for weights [N, K] in stored form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.products.stored import FLOAT, INT8, INT8_GROUP, W8A8, Stored
from boostr.backends.cupy.runtime.kernels import Variant

_COUNTERS = 4096  # tiles of a product whose K is shared out


@dataclass(frozen=True)
class Tile:
    """The shape of a block's work in `gemm_mma.cu`; see there."""

    warps_r: int
    warps_t: int
    mt: int
    nt: int
    stages: int

    @property
    def rows(self) -> int:
        return self.warps_r * self.mt * 16

    @property
    def tokens(self) -> int:
        return self.warps_t * self.nt * 8

    @property
    def threads(self) -> int:
        return self.warps_r * self.warps_t * 32

    def shared_bytes(self, form: int, group: int) -> int:
        """Of a block: the ring, or the tile of results that takes its place."""
        x_bytes = 128 if form in (FLOAT, W8A8) else 256
        scales = 4 * 128 // group if form == INT8_GROUP else 0
        stage = self.rows * (128 + scales) + self.tokens * x_bytes
        return max(stage * self.stages, self.tokens * (self.rows + 4) * 4)

    def defines(self) -> dict[str, int | str]:
        return {
            "WARPS_R": self.warps_r, "WARPS_T": self.warps_t, "MT": self.mt, "NT": self.nt,
            "STAGES": self.stages,
        }  # fmt: skip


# (most tokens, tile); the last serves all larger products
_TILES = {
    FLOAT: (
        (8, Tile(4, 1, 1, 1, 4)), (16, Tile(4, 1, 1, 2, 4)), (32, Tile(4, 1, 1, 4, 4)),
        (64, Tile(4, 1, 2, 8, 4)), (1 << 62, Tile(2, 4, 4, 4, 3)),
    ),
    INT8: (
        (8, Tile(4, 1, 1, 1, 4)), (16, Tile(4, 1, 1, 2, 4)), (32, Tile(4, 1, 1, 4, 4)),
        (64, Tile(4, 1, 2, 8, 4)), (1 << 62, Tile(2, 4, 4, 4, 3)),
    ),
    INT8_GROUP: (
        (8, Tile(4, 1, 1, 1, 4)), (16, Tile(4, 1, 1, 2, 4)), (32, Tile(4, 1, 1, 4, 4)),
        (64, Tile(4, 1, 2, 8, 4)), (1 << 62, Tile(4, 2, 2, 8, 3)),
    ),
    W8A8: (
        (16, Tile(4, 1, 1, 2, 4)), (32, Tile(4, 1, 1, 4, 4)), (64, Tile(4, 1, 2, 8, 4)),
        (1 << 62, Tile(2, 4, 4, 4, 4)),
    ),
}  # fmt: skip


def aligned(*arrays: Any, to: int = 16) -> bool:
    """Whether the addresses of arrays (None: yes) and of their rows are multiples of `to` bytes."""
    return all(
        a is None or (a.data.ptr % to == 0 and all(s % to == 0 for s in a.strides[:-1]))
        for a in arrays
    )


def tensor_cores_take(backend: Any, x: Any, weights: list[Stored]) -> str | None:
    """None if `mma` can multiply x [M, K] by these weights, else why not."""
    if backend.caps.compute_capability < 80:
        return "needs sm_80"
    first = weights[0]
    if any((w.form, w.group, w.rows.dtype) != (first.form, first.group, first.rows.dtype)
           for w in weights):  # fmt: skip
        return "weights of several forms"
    if first.form not in _TILES:
        return "GGUF blocks"
    if first.form != W8A8 and x.dtype not in (dtypes.bfloat16, dtypes.float16):
        return f"x is {x.dtype}"
    if first.form == FLOAT and first.rows.dtype != x.dtype:
        return "weights of another float type"
    if not aligned(*(w.rows for w in weights)) or (first.form != W8A8 and not aligned(x)):
        return "rows off 16 bytes"
    return None


def pick_tile(backend: Any, form: int, group: int, M: int) -> Tile:
    """The tile for a product of M tokens, with as many stages as a block's shared memory holds."""
    tiles = _TILES[form]
    at = next(i for i, (most, _) in enumerate(tiles) if most >= M)
    for _, tile in tiles[at::-1]:
        for stages in range(tile.stages, 1, -1):
            found = replace(tile, stages=stages)
            if found.shared_bytes(form, group) <= backend.caps.shared_bytes:
                return found
    return tiles[0][1]


def pick_shares(backend: Any, tile: Tile, form: int, group: int, tiles: int, K: int) -> int:
    """Into how many parts K is cut, so that few tiles still fill the GPU."""
    steps = -(-K // (64 if form == FLOAT else 128))
    per_sm = min(233472 // (tile.shared_bytes(form, group) + 1024), 2048 // tile.threads, 4)
    wanted = backend.caps.sms * max(per_sm, 1) // max(tiles, 1)
    return max(1, min(wanted, steps // 4, 16)) if tiles <= _COUNTERS else 1


_counters: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def prepare(backend: Any) -> Any:
    """The counters of `gemm_mma.cu`: zero between launches. Made on the first call."""
    found = _counters.get(backend)
    if found is None:
        found = _counters.setdefault(backend, backend.from_numpy(np.zeros(_COUNTERS, np.uint32)))
    return found


def mma(
    backend: Any,
    x: Any,
    weights: list[Stored],
    biases: list[Any],
    residual: Any,
    out: Any,
    tile: Tile | None = None,
    shares: int | None = None,
    early: bool = False,
) -> None:
    """out [M, sum N] = x [M, K] · weights, up to three, on tensor cores.

    x: rows 16-byte aligned; biases: [N] or None for each; residual: as `out`, which is dense or
    has its rows `out.strides[0]` apart. early: weights are read before the kernels before this one
    have ended, so none of these may have written them.
    """
    M, K = x.shape
    first = weights[0]
    x_scales = None
    if first.form == W8A8:
        x, x_scales = quantize_rows(backend, x)
    tile = tile or pick_tile(backend, first.form, first.group, M)
    tiles = sum(-(-w.N // tile.rows) for w in weights) * -(-M // tile.tokens)
    shares = shares or pick_shares(backend, tile, first.form, first.group, tiles, K)
    partials = counters = None
    if shares > 1:
        partials = backend.empty((tiles * shares * tile.rows * tile.tokens,), np.float32)
        counters = prepare(backend)
    given = [b for b in biases if b is not None]
    three = [*weights, *[None] * (3 - len(weights))]
    bias3 = [*biases, *[None] * (3 - len(biases))]
    ldy = out.strides[0] // out.itemsize if M > 1 else out.shape[1]
    wide = in_fours(out, residual)
    backend.launch(
        "gemm_mma", "gemm_mma", (tiles, shares), (tile.threads,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K), x_scales,
            *(w and w.rows for w in three), *(w and w.scales for w in three), *bias3,
            *(w.N if w else 0 for w in three), residual, out, np.int64(ldy), M, K,
            first.scales.shape[1] if first.scales is not None else 0, int(wide),
            int(early), partials, counters,
        ],
        shared_bytes=tile.shared_bytes(first.form, first.group), dependent=True,
        **type_macros(backend, x, first, out, given[0] if given else None, residual),
        **tile.defines(), SPLIT=int(shares > 1),
    )  # fmt: skip


def type_macros(
    backend: Any, x: Any, w: Stored, out: Any, bias: Any, residual: Any
) -> dict[str, Any]:
    """Macros that `gemm_mma.cu` and `gemm_simt.cu` have in common."""
    name = backend.c_type
    own = name(out.dtype)
    found: dict[str, Any] = {
        "FORM": w.form, "OUT": own,
        "X": "i8" if w.form == W8A8 else name(x.dtype),
        "BIAS": own if bias is None else name(bias.dtype),
        "RESIDUAL": own if residual is None else name(residual.dtype),
    }  # fmt: skip
    if w.form == INT8_GROUP:
        found["GROUP"] = w.group
    return found


def in_fours(*arrays: Any) -> bool:
    """Whether rows of these arrays can be read and written four elements at a time."""
    return all(a is None or aligned(a, to=4 * a.itemsize) for a in arrays)


def simt(backend: Any, x: Any, w: Stored, bias: Any, residual: Any, out: Any) -> None:
    """out [M, N] = x [M, K] · w on ordinary arithmetic units; any form, shape and alignment."""
    M, K = x.shape
    x_scales = None
    if w.form == W8A8:
        x, x_scales = quantize_rows(backend, x)
    per_thread = 2 if M <= 48 else 8
    defines = type_macros(backend, x, w, out, bias, residual)
    if w.form == FLOAT:
        defines["W"] = backend.c_type(w.rows.dtype)
    backend.launch(
        "gemm_simt", "gemm_simt", (-(-w.N // 128), -(-M // (16 * per_thread))), (256,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K), x_scales, w.rows, np.int64(K),
            w.scales, bias, residual, out, np.int64(out.strides[0] // out.itemsize), M, w.N, K,
            w.scales.shape[1] if w.scales is not None else 0,
            int(K % 8 == 0 and aligned(x, to=8 if w.form == W8A8 else 16)),
            int(K % 8 == 0 and aligned(w.rows, to=16 if w.form == FLOAT else 8)),
        ],
        TM=per_thread, **defines,
    )  # fmt: skip


def quantize_rows(backend: Any, x: Any) -> tuple[Any, Any]:
    """(int8 [M, K rounded up to 16], float32 [M]): rows of x rounded by their own absmax / 127."""
    M, K = x.shape
    width = -(-K // 16) * 16
    values, scales = backend.empty((M, width), np.int8), backend.empty((M,), np.float32)
    backend.launch(
        "gemm_int8", "quantize_rows", (M,), (256,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K), values, np.int64(width),
            scales, K, int(K % 8 == 0 and aligned(x)),
        ],
        X=backend.c_type(x.dtype),
    )  # fmt: skip
    return values, scales


def _variants() -> list[Variant]:
    same: dict[str, Any] = dict.fromkeys(("X", "OUT", "BIAS", "RESIDUAL"), "bf16")
    made, types = [], same
    for form, tiles in _TILES.items():
        types = {**same, "X": "i8" if form == W8A8 else "bf16"}
        for split, (_, tile) in ((1, tiles[1]), (1, tiles[-2]), (0, tiles[-1])):
            defines = {**types, "FORM": form, **tile.defines(), "SPLIT": split}
            if form == INT8_GROUP:
                defines["GROUP"] = 32
            made.append(Variant("gemm_mma", defines, least=80))
    half = dict.fromkeys(same, "f16")
    tile = _TILES[INT8][-1][1]
    made.append(Variant("gemm_mma", {**half, "FORM": INT8, **tile.defines(), "SPLIT": 0}, least=80))
    for form in range(6):
        types = {**same, "X": "i8" if form == W8A8 else "float", "OUT": "float", "FORM": form}
        made.append(Variant("gemm_simt", {**types, "W": "bf16", "TM": 8}))
    made.append(Variant("gemm_simt", {**types, "W": "bf16", "TM": 2}))
    return [*made, Variant("gemm_int8", {"X": "float"}), Variant("gemm_int8", {"X": "bf16"})]


VARIANTS = _variants()
