"""Attention on WebGPU: which kernel serves a call, and the launches of the tiled forward kernel.

A list of tiles is made on the device (`attention_plan.wgsl`), then one workgroup takes each tile of
each head (`attention.wgsl`). Few queries over a paged cache go to `attention_decode`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.attention import attention_decode, attention_matrix
from boostr.backends.wgpu.attention.attention_decode_combine import combine
from boostr.backends.wgpu.attention.attention_plan import (
    Call,
    Plan,
    lanes,
    make_plan,
    rows_of,
    sides,
    splits_of,
    together,
)
from boostr.backends.wgpu.attention.cache import packed_refusal, unpack
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.operands import KV, PackedKV
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend
    from boostr.backends.wgpu.runtime.array import GpuArray

MAX_WIDTH = 256


# -- tiles -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tiles:
    """How `attention.wgsl` is cut: TM * TY queries against TN * TX keys, TX * TY threads.

    Attributes:
        BK: columns of q and k in shared memory at a time.   BKV: keys of v at a time.
        RESIDENT: whether the tile's queries stay in shared memory.   UNROLL: of inner loops.
        AHEAD: whether the next piece is fetched while one is multiplied, four numbers at a time;
            else the text is short (and without RESIDENT).
    """

    TX: int
    TY: int
    TM: int
    TN: int
    BK: int
    BKV: int
    RESIDENT: bool = False
    UNROLL: int = 4
    AHEAD: bool = True

    @property
    def rows(self) -> int:
        return self.TM * self.TY

    @property
    def threads(self) -> int:
        return self.TX * self.TY

    def fitted(self, D: int) -> Tiles:
        """With chunks that a head of D columns fills."""
        BK = next((n for n in (32, 16, 8) if n <= self.BK and D % n == 0), min(self.BK, 16))
        return replace(self, BK=BK if D > BK // 2 else 8, UNROLL=min(self.UNROLL, BK, self.BKV))

    def shared_bytes(self, D: int, DV: int) -> int:
        """Of its workgroup arrays."""
        keys = self.TN * self.TX
        QP, KP = self.rows // 4 + 1, keys // 4 + 1
        VP = -(-DV // (4 * self.TX)) * self.TX
        stage = self.BK * KP + (0 if self.RESIDENT else self.BK * QP)
        resident = -(-D // self.BK) * self.BK * QP if self.RESIDENT else 0
        return 16 * (max(stage, self.BKV * VP) + max(keys, self.TX) * QP + resident)


# From the best on a large GPU to the smallest, for heads of up to so many columns
TILES: dict[int, tuple[Tiles, ...]] = {
    64: (Tiles(16, 8, 8, 4, 32, 32, RESIDENT=True), Tiles(8, 8, 4, 8, 16, 16)),
    96: (Tiles(8, 16, 4, 8, 32, 32), Tiles(16, 8, 4, 4, 16, 8)),
    128: (Tiles(16, 8, 8, 4, 32, 32), Tiles(16, 8, 4, 4, 16, 8)),
    256: (Tiles(16, 8, 8, 4, 32, 16), Tiles(16, 4, 4, 4, 8, 8, UNROLL=2)),
}

# instead of the first of these where it would leave a large GPU's cores without work
FEW = {64: Tiles(16, 8, 4, 4, 32, 32), 128: Tiles(16, 8, 4, 4, 32, 32)}
_FILLS = 132  # workgroups


def software_tiles(width: int) -> Tiles:
    """Of few threads, which barriers cost least, and short, as a CPU compiles them."""
    return Tiles(4 if width <= 128 else 8, 4, 4, 4, 16, 16, UNROLL=1, AHEAD=False)


@cache
def choose_tiles(D: int, DV: int, caps: Caps, few: bool = False) -> Tiles | None:
    """The tiles for heads of D and DV columns; None if a workgroup has too little memory.

    few: as many as fill the GPU are not to be had.
    """
    width = next(n for n in TILES if max(D, DV) <= n)
    listed = [software_tiles(max(D, DV))] if caps.kind == "software" else []
    if few and width in FEW and caps.kind == "discrete":
        listed.append(FEW[width])
    for tiles in (t.fitted(D) for t in (*listed, *TILES[width])):
        fits = tiles.shared_bytes(D, DV) <= caps.workgroup_bytes
        if fits and tiles.threads <= caps.workgroup_threads:
            return tiles
    return None


def is_general(caps: Caps) -> bool:
    """Whether one pipeline should serve all options: where a CPU compiles, it takes seconds."""
    return caps.kind == "software"


def shuffles(tiles: Any, caps: Caps) -> bool:
    """Whether the threads of a row lie in one subgroup."""
    return lanes(caps) >= tiles.TX


def values(
    tiles: Tiles, D: int, DV: int, q: str, kv: str, vector: bool = True, block: int = 0,
    shuffle: bool = False, flag: bool = False, splits: int = 1, **extras: bool,
) -> dict[str, Any]:  # fmt: skip
    """What attention.wgsl is rendered with, from the types of q and k, v.

    block: rows of a cache's block, -1 for any, 0 for packed keys.   flag: whether it runs only
    where a flag is set.   splits: workgroups that share a tile's keys.   extras: softcap, alibi,
    sinks.
    """
    return {
        **asdict(tiles), "D": D, "DV": DV, "Q": q, "KV": kv, "OUT": "f32" if DV % 2 else q,
        "VECTOR": int(vector), "BLOCK": block, "SHUFFLE": int(shuffle), "FLAG": int(flag),
        "SPLITS": splits,
        **{name.upper(): int(extras.get(name, False)) for name in ("softcap", "alibi", "sinks")},
    }  # fmt: skip


def _attend(call: Call) -> tuple[Tensor, Tensor]:
    backend: WgpuBackend = call.q.backend  # type: ignore[assignment]
    q, DV, sinks = call.q.data, call.v.data.shape[-1], call.sinks
    rows = _tiles(call).rows
    splits = splits_of(call, rows, 2 * _FILLS)
    if splits > 1 and q.size:
        parts = backend.empty((*q.shape[:2], splits, 4 * -(-DV // 4) + 4), dtypes.float32)
        attend_into(call, [parts], splits=splits)
        logits = None if sinks is None else backend.dense(sinks.data)
        cu = backend.dense(call.cu_q.data)
        out, lse = combine(backend, parts, DV, logits, cu, q.dtype)
    else:
        out = backend.empty((*q.shape[:2], DV), dtypes.float32 if DV % 2 else q.dtype)
        lse = backend.empty(q.shape[:2], dtypes.float32)
        attend_into(call, [out, lse])
        out = out if out.dtype == q.dtype else backend.cast(out, q.dtype)
    return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)


def _tiles(call: Call, again: bool = False) -> Any:
    """The tiles for a call, or for what tensor cores could not do."""
    (Tq, H, D), DV = call.q.data.shape, call.v.data.shape[-1]
    caps = call.q.backend.caps  # type: ignore[attr-defined]
    return choose_tiles(D, DV, caps, Tq * H < _FILLS * 64 and not again)


def attend_into(
    call: Call, writes: list[GpuArray], flag: GpuArray | None = None, plan: Plan | None = None,
    splits: int = 1,
) -> None:  # fmt: skip
    """Write out and lse, or partials if there are `splits`; with a `flag`, only where its first
    word is not 0. `plan`: a list of the call's tiles that may suit."""
    backend: WgpuBackend = call.q.backend  # type: ignore[assignment]
    options = call.options
    (q, k, v), vector = rows_of(backend, call.q.data, call.k.data, call.v.data)
    (Tq, H, D), (K, DV) = q.shape, v.shape[-2:]
    tiles = _tiles(call, flag is not None)
    vector = vector and tiles.AHEAD
    if Tq * H:
        table = None if call.table is None else backend.dense(call.table.data)
        capacity = None if table is None else table.shape[1] * k.shape[1]
        window = sides(options)
        alibi, sinks = (None if x is None else x.data for x in (call.alibi, call.sinks))
        if plan is None or plan.rows != tiles.rows:
            plan = make_plan(
                backend, tiles.rows, Tq, call.cu_q.data, call.b.data, window,
                options.bottom_right, (H, alibi, sinks), capacity,
            )  # fmt: skip
        unit = 4 if vector else 1
        places = []
        for x in (q, k, v):
            places += [backend.offset(x) // unit, x.strides[-3] // unit, x.strides[-2] // unit]
        blocks = [0 if table is None else x.strides[0] // unit for x in (k, v)]
        keys = k.shape[0] * (1 if table is None else k.shape[1])
        side = together(H, H // K, keys * (D + DV) * k.dtype.itemsize)
        cap, general = options.softcap, is_general(backend.caps)
        scale = options.scale / cap if cap else options.scale * np.log2(np.e)
        backend.launch(
            "attention", "attention", plan.tiles * H * splits,
            [q, k, v, plan.entries, *(x for x in (table, flag) if x is not None)], writes,
            (*places, *blocks, k.shape[1], 0 if table is None else backend.offset(table),
             0 if table is None else table.shape[1], H, H // K, plan.tiles, side,
             call.cu_q.data.shape[0] - 1, *window, float(scale), float(cap * np.log2(np.e))),
            **values(
                tiles, D, DV, name_of(q.dtype), name_of(k.dtype), vector,
                0 if table is None else -1 if general else k.shape[1],
                shuffles(tiles, backend.caps), flag is not None, splits, softcap=general or cap > 0,
                alibi=general or alibi is not None, sinks=general or sinks is not None,
            ),
        )  # fmt: skip


# -- routing ---------------------------------------------------------------------------------------
def supports(q: Tensor, k: KV, v: KV, *rest: Any) -> str | None:
    """Why the tiled kernel cannot take these, or None."""
    floats = [t for t in (q, k) if not isinstance(t, PackedKV)]
    if any(t.dtype not in dtypes.MODEL_FLOATS for t in floats):
        names = " and ".join(str(t.dtype) for t in floats)
        return f"dtypes {names}: it takes float32, float16 and bfloat16"
    D, DV = q.shape[2], v.shape[-1]
    if max(D, DV) > MAX_WIDTH:
        return f"heads of {D} and {DV} columns: it takes up to {MAX_WIDTH}"
    caps = q.backend.caps  # type: ignore[attr-defined]
    if choose_tiles(D, DV, caps) is None:
        return f"heads of {D} and {DV} columns do not fit {caps.workgroup_bytes} bytes"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if isinstance(x, PackedKV):
            continue
        if x.data.span[1] * x.dtype.itemsize > caps.binding_bytes < x.data.buffer.block.size:
            return f"{name} ends behind the {caps.binding_bytes} bytes that a kernel can see"
    return None


def _serve(call: Call) -> tuple[Tensor, Tensor]:
    if attention_matrix.takes(call):
        return attention_matrix.attend(call, attend_into)
    return _attend(call)


def _varlen(*args: Any) -> tuple[Tensor, Tensor]:
    q, k, v, cu_q, cu_k, alibi, sinks, options = args
    return _serve(Call(q, k, v, cu_q, cu_k, None, alibi, sinks, options))


def _paged(*args: Any) -> tuple[Tensor, Tensor]:
    if attention_decode.supports(*args) is None:
        return attention_decode.attend(*args)
    q, k, v, cu_q, table, kv_lens, alibi, sinks, options = args
    if isinstance(k, PackedKV):
        (k, named), (v, _) = (
            unpack(q.backend, cache, table.data, kv_lens.data, q.dtype) for cache in (k, v)
        )
        k, v, table = (Tensor.wrap(x, q.backend) for x in (k, v, named))
    return _serve(Call(q, k, v, cu_q, kv_lens, table, alibi, sinks, options))


def _paged_supports(q: Tensor, k: KV, v: KV, cu_q: Tensor, table: Tensor, *rest: Any) -> str | None:
    reason = supports(q, k, v) or packed_refusal(k, v)
    if reason is None and isinstance(k, PackedKV):
        most = q.backend.caps.binding_bytes  # type: ignore[attr-defined]
        numbers = table.size * math.prod((*k.shape[1:3], max(k.shape[3], v.shape[3])))
        in_place = attention_decode.supports(q, k, v, cu_q, table, *rest) is None
        if not in_place and max(numbers * q.dtype.itemsize, k.nbytes, v.nbytes) > most:
            reason = f"a tensor, packed or as floats, is larger than a binding, {most} bytes"
    return reason


KERNELS = {
    "varlen_attention": Kernel(_varlen, supports),
    "paged_attention": Kernel(_paged, _paged_supports),
}

BARE = Caps("", "", "")  # a device with nothing beyond what WebGPU promises
LARGE = replace(BARE, workgroup_bytes=48 << 10, workgroup_threads=1024)


def _variants() -> list[Variant]:
    """Of the largest tiles and of those for a bare device."""
    made = []
    rest = {"softcap": True, "alibi": True, "sinks": True}
    for D, DV in ((64, 64), (80, 80), (128, 128), (256, 256), (1, 7), (24, 16)):
        vector = D % 4 == 0
        tiles = software_tiles(max(D, DV)).fitted(D)
        made.append(Variant("attention", values(tiles, D, DV, "f32", "bf16", False, -1, **rest)))
        for caps, q, kv in ((BARE, "f32", "f32"), (LARGE, "bf16", "f16")):
            tiles = choose_tiles(D, DV, caps)
            assert tiles is not None
            if caps is BARE:
                made.append(Variant("attention", values(tiles, D, DV, q, kv, vector, 16, **rest)))
                continue
            for shuffle in (False, True):
                rendered = values(tiles, D, DV, q, kv, vector, shuffle=shuffle, flag=shuffle,
                                  splits=1 if shuffle else 3)  # fmt: skip
                made.append(Variant("attention", rendered, ("subgroup_max",) if shuffle else ()))
    return made


VARIANTS = _variants()
