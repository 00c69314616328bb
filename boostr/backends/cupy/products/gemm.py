"""Launches of our own matrix products: `gemm_mma.cu` (tensor cores), `gemm_simt.cu` (any shape),
`gemm_int8.cu` (x rounded to int8); `gemm_sm90.py` has those of Hopper. All write y [M, sum of N]
for weights [N, K] in stored form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.products.stored import (
    NO_PLANES,
    OFFSET_BYTES,
    SCALE_BYTES,
    SNIPPETS,
    Stored,
    form_macros,
    of_integers,
    table_words,
)
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import FIELDS, SCHEMES

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

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

    def shared_bytes(self, form: Form) -> int:
        """Of a block: the ring, or the tile of results that takes its place."""
        wide_x = not form.is_float and not form.rounds_input
        stage = self.rows * (128 if not wide_x else sum(stage_bytes(form)))
        stage = -(-stage // 16) * 16 + self.tokens * (256 if wide_x else 128)
        return max(stage * self.stages, self.tokens * (self.rows + 4) * 4)

    def defines(self) -> dict[str, int | str]:
        return {
            "WARPS_R": self.warps_r, "WARPS_T": self.warps_t, "MT": self.mt, "NT": self.nt,
            "STAGES": self.stages,
        }  # fmt: skip


_DEPTH = 128  # codes of a row in a stage
_PACKED = ("c6", "c5", "c4", "c3", "c2")  # codes of fewer than 8 bits


def stage_bytes(form: Form) -> tuple[int, ...]:
    """Bytes of a row in a stage: codes, high bits, scales, offsets, super-scales and floors."""
    low, *high = FIELDS[int(form.codes[1])] if form.codes in _PACKED else (8,)
    groups = max(1, _DEPTH // form.group) if form.group else 0
    supers = (4 if form.super else 0, 4 if form.offsets == "u8" else 0)
    return (
        16 * low, 16 * sum(high), groups * SCALE_BYTES[form.scale],
        groups * OFFSET_BYTES[form.offsets], *supers,
    )  # fmt: skip


# (most tokens, tile); the last serves all larger products
_FEW_TILES = (
    (8, Tile(4, 1, 1, 1, 4)), (16, Tile(4, 1, 1, 2, 4)), (32, Tile(4, 1, 1, 4, 6)),
    (64, Tile(4, 1, 2, 8, 4)),
)  # fmt: skip
TILES = {
    "float": (*_FEW_TILES, (1 << 62, Tile(2, 4, 4, 4, 3))),
    "rows": (*_FEW_TILES, (1 << 62, Tile(2, 4, 4, 4, 3))),
    "groups": (*_FEW_TILES, (1 << 62, Tile(4, 2, 2, 8, 3))),
    "rounds": (*_FEW_TILES[1:], (1 << 62, Tile(2, 4, 4, 4, 4))),
}


def kind_of(form: Form) -> str:
    """The key of TILES: how the sums of a form are made."""
    if form.is_float:
        return "float"
    return "rounds" if form.rounds_input else "groups" if form.group else "rows"


def aligned(*arrays: Any, to: int = 16) -> bool:
    """Whether the addresses of arrays (None: yes) and of their rows are multiples of `to` bytes."""
    return all(
        a is None or (a.data.ptr % to == 0 and all(s % to == 0 for s in a.strides[:-1]))
        for a in arrays
    )


def tensor_cores_take(backend: CupyBackend, x: Any, weights: list[Stored]) -> str | None:
    """None if there is a product of x [M, K] by these weights on tensor cores, else why not."""
    if backend.caps.compute_capability < 80:
        return "needs sm_80"
    first = weights[0]
    if any((w.form, w.codes.dtype) != (first.form, first.codes.dtype) for w in weights):
        return "weights of several forms"
    rounds = first.form.rounds_input
    if not rounds and x.dtype not in (dtypes.bfloat16, dtypes.float16):
        return f"x is {x.dtype}"
    if first.form.is_float and first.codes.dtype != x.dtype:
        return "weights of another float type"
    if not (rounds or aligned(x)) or not all(aligned(w.codes) and w.aligned for w in weights):
        return "rows off 16 bytes"
    return None


def mma_refusal(form: Form) -> str | None:
    """Why `mma` cannot multiply by weights that `tensor_cores_take`; None if it can."""
    least = 16 if form.codes in _PACKED else 32
    if form.group and form.group < least:
        return f"groups of {form.group} inputs"
    return f"super-scales of {form.super} inputs" if form.super % _DEPTH else None


def pick_tile(backend: CupyBackend, form: Form, M: int) -> Tile:
    """The tile for a product of M tokens, with as many stages as a block's shared memory holds."""
    tiles = TILES[kind_of(form)]
    at = next(i for i, (most, _) in enumerate(tiles) if most >= M)
    for _, tile in tiles[at::-1]:
        for stages in range(tile.stages, 1, -1):
            found = replace(tile, stages=stages)
            if found.shared_bytes(form) <= backend.caps.shared_bytes:
                return found
    return tiles[0][1]


def pick_shares(backend: CupyBackend, tile: Tile, form: Form, tiles: int, K: int) -> int:
    """Into how many parts K is cut, so that few tiles still fill the GPU."""
    steps = -(-K // (64 if form.is_float else _DEPTH))
    per_sm = min(233472 // (tile.shared_bytes(form) + 1024), 2048 // tile.threads, 4)
    wanted = backend.caps.sms * max(per_sm, 1) // max(tiles, 1)
    return max(1, min(wanted, steps // 4, 16)) if tiles <= _COUNTERS else 1


_counters: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def prepare(backend: CupyBackend) -> Any:
    """The counters of `gemm_mma.cu`: zero between launches. Made on the first call."""
    found = _counters.get(backend)
    if found is None:
        found = _counters.setdefault(backend, backend.from_numpy(np.zeros(_COUNTERS, np.uint32)))
    return found


def mma(
    backend: CupyBackend,
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
    if first.form.rounds_input:
        x, x_scales = quantize_rows(backend, x)
    tile = tile or pick_tile(backend, first.form, M)
    tiles = sum(-(-w.N // tile.rows) for w in weights) * -(-M // tile.tokens)
    shares = shares or pick_shares(backend, tile, first.form, tiles, K)
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
            *(p for w in three for p in (w.planes if w else NO_PLANES)), *bias3,
            *(w.N if w else 0 for w in three), residual, out, np.int64(ldy), M, K, int(wide),
            int(early), partials, counters,
        ],
        shared_bytes=tile.shared_bytes(first.form), dependent=True,
        **type_macros(backend, x, first, out, given[0] if given else None, residual)
        | term_macros(first.form, x.dtype) | tile.defines()
        | piece_macros(first.form, [w.pieces for w in weights]), SPLIT=int(shares > 1),
    )  # fmt: skip


def piece_macros(form: Form, rows: list[tuple[int, int]]) -> dict[str, int]:
    """HIGH_PIECE and PIECE of gemm_mma.cu, if rows of the planes allow `rows`; see `Stored`."""
    _, high, scales, offsets, *_ = stage_bytes(form)
    found = (
        {"PIECE": math.gcd(scales, offsets, *(small for _, small in rows))} if form.group else {}
    )
    return {**found, "HIGH_PIECE": math.gcd(high, *(size for size, _ in rows))} if high else found


def type_macros(
    backend: CupyBackend, x: Any, w: Stored, out: Any, bias: Any, residual: Any
) -> dict[str, Any]:
    """Macros that the matrix products have in common."""
    name = backend.c_type
    own = name(out.dtype)
    return {
        **form_macros(w.form), "OUT": own,
        "X": "i8" if w.form.rounds_input else name(x.dtype),
        "BIAS": own if bias is None else name(bias.dtype),
        "RESIDUAL": own if residual is None else name(residual.dtype),
    }  # fmt: skip


def term_macros(form: Form, x: np.dtype) -> dict[str, str]:
    """TABLE of `two_terms` in gemm_terms.cuh, for numbers with more bits than x's type has."""
    if not form.table or of_integers(form):
        return {}
    numbers = np.zeros(16, np.float32)
    numbers[: len(form.table)] = form.table
    near = numbers.astype(x)
    rest = (numbers - near.astype(np.float32)).astype(x)
    return {"TABLE": table_words(np.stack([near, rest], 1).view(np.uint32)[:, 0])}


def in_fours(*arrays: Any) -> bool:
    """Whether rows of these arrays can be read and written four elements at a time."""
    return all(a is None or aligned(a, to=4 * a.itemsize) for a in arrays)


def simt(backend: CupyBackend, x: Any, w: Stored, bias: Any, residual: Any, out: Any) -> None:
    """out [M, N] = x [M, K] · w on ordinary arithmetic units; any form, shape and alignment."""
    M, K = x.shape
    x_scales = None
    if w.form.rounds_input:
        x, x_scales = quantize_rows(backend, x)
    per_thread = 2 if M <= 48 else 8
    backend.launch(
        "gemm_simt", "gemm_simt", (-(-w.N // 128), -(-M // (16 * per_thread))), (256,),
        [
            x, np.int64(x.strides[0] // x.itemsize if M > 1 else K), x_scales, *w.planes,
            bias, residual, out, np.int64(out.strides[0] // out.itemsize), M, w.N, K,
            int(K % 8 == 0 and aligned(x, to=8 if w.form.rounds_input else 16)), int(w.in_eights),
        ],
        TM=per_thread, **type_macros(backend, x, w, out, bias, residual),
    )  # fmt: skip


def quantize_rows(backend: CupyBackend, x: Any) -> tuple[Any, Any]:
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
    names = ("int8", "int8-g32", "w8a8", "q4_1", "q6_k")
    forms = [Form("bf16"), *(scheme_form(SCHEMES[name]) for name in names)]
    made = []
    for form in (*forms, *SNIPPETS.values()):
        macros = {
            **same, **form_macros(form), **piece_macros(form, [(16, 16)]),
            **term_macros(form, dtypes.bfloat16), "X": "i8" if form.rounds_input else "bf16",
        }  # fmt: skip
        tiles = TILES[kind_of(form)]
        every = ((1, tiles[1]), (1, tiles[-2]), (0, tiles[-1]))
        for split, (_, tile) in every if form in forms else every[-1:]:
            made.append(Variant("gemm_mma", {**macros, **tile.defines(), "SPLIT": split}, least=80))
    for form in forms:
        floats = {**dict.fromkeys(same, "float"), "TM": 8} | (
            {"X": "i8"} if form.rounds_input else {}
        )
        made.append(Variant("gemm_simt", {**form_macros(form), **floats}))
    made.append(Variant("gemm_simt", {**made[-1].defines, "TM": 2}))
    half = dict.fromkeys(same, "f16")
    for scheme in ("int8", "q4_1"):
        form = scheme_form(SCHEMES[scheme])
        tile = TILES[kind_of(form)][-1][1]
        odd = {"PIECE": 2} if form.group else {}
        defines = {**half, **form_macros(form), **odd, **tile.defines(), "SPLIT": 0}
        made.append(Variant("gemm_mma", defines, least=80))
    return [*made, Variant("gemm_int8", {"X": "float"}), Variant("gemm_int8", {"X": "bf16"})]


VARIANTS = _variants()
