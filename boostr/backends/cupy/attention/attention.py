"""Attention on CUDA: which kernel serves a call, and the launches of the mma.sync and SIMT kernels.

In order: split keys for few queries (`attention_decode`), for some more on Hopper
(`attention_split_sm90`), its kernel for many (`attention_sm90`),
`shaders/cuda/attention/attention.cu` (tensor cores, 16-bit), `attention_simt.cu` (everything else).
Packed keys and values are read by the first of these (int8) or become floats for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.attention import (
    attention_decode,
    attention_sm90,
    attention_split_sm90,
)
from boostr.backends.cupy.attention.attention_combine import combine
from boostr.backends.cupy.attention.cache import unpack
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.operands import KV, PackedKV
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
MAX_V_WIDTH = 512  # of the SIMT kernel
_SIMT_SIDE = 64
_FAR = 1 << 30  # a window side without limit
_FEW = 64  # rows per segment, for which smaller tiles are enough
_LEAST_KEYS, _MAX_SPLITS = 512, 32  # of a split
_MANY_SPLITS = 5  # from here on splitting beats Hopper's faster products


# -- tiles -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tiles:
    """How `attention.cu` is cut: 16 * tiles_m * warps queries against block_n keys at a time."""

    block_n: int
    tiles_m: int = 2
    warps: int = 4
    blocks: int = 2  # resident on a multiprocessor, at least

    @property
    def rows(self) -> int:
        return 16 * self.tiles_m * self.warps

    def shared_bytes(self, head_dim: int) -> int:
        """q, two stages of k and of v, and what the kernel calls `Kept`."""
        chunks = head_dim // 8
        pitch = 16 * (chunks if chunks % 8 == 0 else chunks | 1)
        tiles = (self.rows, *(self.block_n,) * 4)
        return sum(-(-n * pitch // 1024) * 1024 for n in tiles) + 128

    def defines(
        self, head_dim: int, c_type: str, paged: bool, general: bool, split: bool = False
    ) -> dict[str, Any]:
        return {
            "DTYPE": c_type, "HEAD_DIM": head_dim, "BLOCK_N": self.block_n,
            "TILES_M": self.tiles_m, "BLOCK_WARPS": self.warps, "BLOCKS": self.blocks,
            "PAGED": int(paged), "GENERAL": int(general), "SPLIT": int(split),
        }  # fmt: skip


def _candidates(head_dim: int, plain: bool, general: bool, few: bool) -> list[Tiles]:
    """From the best on an H100 to the smallest."""
    small = Tiles(32, 1)
    if head_dim == 256:
        large = [] if few else [Tiles(64, 1, 8, 1), Tiles(32, 1, 8, 1)]
        return [*large, small, Tiles(32, 1, 4, 1)]
    if few:
        return [Tiles(64, 1, 4, 3 if head_dim <= 96 else 2), small]
    if head_dim == 128:
        return [*([] if general else [Tiles(64)]), Tiles(32), small]
    return [*([Tiles(128)] if plain and head_dim <= 64 else []), Tiles(64), Tiles(32), small]


@cache
def choose_tiles(
    head_dim: int, paged: bool, general: bool, shared_bytes: int, few: bool = False
) -> Tiles | None:
    """The tiles for a GPU whose blocks may take `shared_bytes`; None: it has too little.

    `few`: at most 64 queries per segment. The first candidate of which as many blocks as it wants
    have room on a multiprocessor (each takes 1 KiB for itself), or that fits at all.
    """
    listed = _candidates(head_dim, not paged and not general, general, few)
    sizes = [tiles.shared_bytes(head_dim) for tiles in listed]
    for tiles, size in zip(listed, sizes, strict=True):
        if tiles.blocks * (size + 1024) <= shared_bytes + 1024:
            return tiles
    return next((t for t, size in zip(listed, sizes, strict=True) if size <= shared_bytes), None)


@dataclass(frozen=True)
class Plan:
    """Tiles, blocks that share a tile's keys, and heads that share its rows."""

    tiles: Tiles
    splits: int = 1
    pack: int = 1


# -- one call --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Call:
    """The arguments of either op. `cu_k` is kv_lens and k, v are caches if there is a `table`."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_q: Tensor
    cu_k: Tensor
    table: Tensor | None
    alibi: Tensor | None
    sinks: Tensor | None
    options: Any

    @property
    def backend(self) -> Any:
        return self.q.backend

    @property
    def width(self) -> int:
        return max(self.q.shape[2], self.v.shape[-1])

    @property
    def head_dim(self) -> int:
        """The compiled width that holds q, k and v; 0 if none does."""
        return next((d for d in HEAD_DIMS if self.width <= d), 0)

    @property
    def general(self) -> bool:
        exact = self.q.shape[2] == self.v.shape[-1] == self.head_dim
        return bool(self.options.softcap) or self.alibi is not None or not exact

    @property
    def on_tensor_cores(self) -> bool:
        q, k = self.q, self.k
        least = 80 if q.dtype == dtypes.bfloat16 else 75
        widths = q.shape[2] % 8 == 0 == self.v.shape[-1] % 8
        sixteen = q.dtype == k.dtype and q.dtype in (dtypes.float16, dtypes.bfloat16)
        capable = self.backend.caps.compute_capability >= least
        return bool(sixteen and widths and self.head_dim and capable and self.options.scale > 0)

    def plan(self) -> Plan | None:
        """How the tensor-core kernel serves this call, from shapes alone; None if it cannot.

        Where few queries meet many keys, as in a turn of a chat, most of the GPU would wait: then
        several blocks share the keys of a tile, and the heads of a group share its rows.
        """
        if not self.on_tensor_cores:
            return None
        Tq, H, _ = self.q.shape
        B, group = self.cu_q.size - 1, H // self.k.shape[-2]
        tiles = self._tiles(Tq * group // B)
        if tiles is not None and group <= tiles.rows:
            blocks = max(B, -(-Tq // (tiles.rows // group))) * (H // group)
            room = tiles.blocks * self.backend.caps.sms // max(1, blocks)
            splits = min(room, self._keys() // _LEAST_KEYS, _MAX_SPLITS)
            if splits > 1:
                return Plan(tiles, splits, group)
        tiles = self._tiles(Tq // B)
        return None if tiles is None else Plan(tiles)

    def _tiles(self, rows: int) -> Tiles | None:
        paged, most = self.table is not None, self.backend.caps.shared_bytes
        return choose_tiles(self.head_dim, paged, self.general, most, rows <= _FEW)

    def _keys(self) -> int:
        """How many keys the queries of a segment may see; their true number is on the device."""
        B, options = self.cu_q.size - 1, self.options
        keys = self.k.shape[0] // B
        if self.table is not None:
            keys = self.table.shape[1] * self.k.shape[1]
        if options.left >= 0 and (options.causal or options.right >= 0):
            keys = min(keys, options.left + max(options.right, 0) + self.q.shape[0] // B)
        return keys


def _rows(backend: CupyBackend, x: Any, aligned: bool) -> Any:
    """x [..., D] with elements of a row side by side, and on 16 bytes if `aligned`; else a copy."""
    size = x.dtype.itemsize
    straight = x.shape[-1] == 1 or x.strides[-1] == size
    if aligned:
        outer = [s for s, n in zip(x.strides[:-1], x.shape[:-1], strict=True) if n > 1]
        straight = straight and not any(s % 16 for s in (x.data.ptr, *outer))
    return x if straight and x.size else backend.copy(x)


def _together(heads: int, group: int, head_bytes: int, l2_bytes: int) -> int:
    """How many query heads run side by side: as many as keep their keys and values in the L2."""
    fit = max(1, l2_bytes // 2 // max(1, head_bytes))
    kv_heads = heads // group
    return group * max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= fit)


def _arguments(call: _Call, aligned: bool) -> tuple[list[Any], Any, Any]:
    """(kernel arguments, out, lse); the last two arguments say how heads are dealt to blocks."""
    backend, options = call.backend, call.options
    (Tq, H, D), (K, Dv) = call.q.shape, call.v.shape[-2:]
    q, k, v = (_rows(backend, x.data, aligned) for x in (call.q, call.k, call.v))
    out = backend.empty((Tq, H, Dv), q.dtype)
    lse = backend.empty((Tq, H), np.dtype(np.float32))

    def strides(x: Any, *axes: int) -> list[np.int64]:
        return [np.int64(x.strides[axis] // x.dtype.itemsize) for axis in axes]

    blocks = [strides(x, 0)[0] if call.table is not None else np.int64(0) for x in (k, v)]
    dense = [
        None if x is None else backend.dense(x.data)
        for x in (call.cu_q, call.cu_k, call.table, call.alibi, call.sinks)
    ]
    block_size, columns = 1, 1
    if call.table is not None:
        block_size, columns = k.shape[1], call.table.shape[1]
    keys = k.shape[0] * (block_size if call.table is not None else 1)
    together = _together(H, H // K, keys * (D + Dv) * k.dtype.itemsize, backend.caps.l2_bytes)
    left, right = (_FAR if side < 0 else side for side in (options.left, options.right))
    args = [
        out, lse, q, k, v, *dense, *strides(q, 0, 1), *strides(k, -3, -2), *strides(v, -3, -2),
        *blocks, Tq, call.cu_q.size - 1, H, H // K, D, Dv, left, 0 if options.causal else right,
        int(options.bottom_right), float(options.scale), float(options.softcap), block_size,
        columns, together, 1,
    ]  # fmt: skip
    return args, out, lse


def _grid(call: _Call, rows: int, heads: int, together: int) -> tuple[int, int]:
    """`rows` queries a tile, `heads` heads or groups of them, `together` of these side by side."""
    tiles = len(call.q) // rows + call.cu_q.size  # each segment rounds up; so does what is in none
    return tiles * together, heads // together


def _mma(call: _Call, plan: Plan) -> tuple[Any, Any]:
    args, out, lse = _arguments(call, aligned=True)
    backend, tiles, splits, pack = call.backend, plan.tiles, plan.splits, plan.pack
    (Tq, H, _), Dv, sinks = call.q.shape, call.v.shape[-1], args[9]
    if splits > 1:
        out, lse = backend.empty((Tq, H, splits, Dv)), backend.empty((Tq, H, splits, 2))
        args[:2] = out, lse
    together = args[-2] // pack
    args[-2:] = together, pack
    backend.launch(
        "attention", "attention",
        (*_grid(call, tiles.rows // pack, H // pack, together), splits), (32 * tiles.warps,), args,
        shared_bytes=tiles.shared_bytes(call.head_dim),
        **tiles.defines(
            call.head_dim, backend.c_type(call.q.dtype), call.table is not None, call.general,
            splits > 1,
        ),
    )  # fmt: skip
    if splits == 1:
        return out, lse
    return combine(backend, out, lse, sinks, args[5], call.q.dtype)


def _simt(call: _Call) -> tuple[Any, Any]:
    args, out, lse = _arguments(call, aligned=False)
    backend = call.backend
    backend.launch(
        "attention_simt", "attention_simt",
        _grid(call, _SIMT_SIDE, call.q.shape[1], args[-2]), (256,), args,
        **_simt_defines(
            backend.c_type(call.q.dtype), backend.c_type(call.k.dtype), call.v.shape[-1],
            call.table is not None,
        ),
    )  # fmt: skip
    return out, lse


def _simt_defines(q_type: str, kv_type: str, v_width: int, paged: bool) -> dict[str, Any]:
    chunks = next(n for n in (1, 2, 4, 8) if v_width <= n * _SIMT_SIDE)
    return {"Q_TYPE": q_type, "KV_TYPE": kv_type, "V_CHUNKS": chunks, "PAGED": int(paged)}


# -- routing ---------------------------------------------------------------------------------------
# (whether it takes a call, what runs it), in order; a decode step's few queries go to split keys
_HOPPER = (attention_sm90.supports, attention_sm90.run)
_HOPPER_PAGED = (attention_sm90.paged_supports, attention_sm90.paged_run)
_HOPPER_SPLIT = (attention_split_sm90.supports, attention_split_sm90.run)
_SPECIALISTS: dict[str, tuple[tuple[Callable, Callable], ...]] = {
    "varlen_attention": (_HOPPER,),
    "paged_attention": (
        (attention_decode.supports, attention_decode.attend), _HOPPER_SPLIT, _HOPPER_PAGED,
    ),
}  # fmt: skip


def _specialist(
    op: str, args: tuple[Any, ...], splits: int
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What another module has for this call; `splits`: what this one would do."""
    for pair in _SPECIALISTS[op]:
        takes, runs = pair
        behind = pair in (_HOPPER, _HOPPER_PAGED) and splits >= _MANY_SPLITS
        if not behind and takes(*args) is None:
            return runs
    return None


def _supports(q: Tensor, k: KV, v: KV, *rest: Any) -> str | None:
    floats = [t for t in (q, k) if not isinstance(t, PackedKV)]
    if any(t.dtype not in dtypes.MODEL_FLOATS for t in floats):
        names = " and ".join(str(t.dtype) for t in floats)
        return f"dtypes {names}: it takes float32, float16 and bfloat16"
    if v.shape[-1] > MAX_V_WIDTH:
        return f"values of width {v.shape[-1]} are more than {MAX_V_WIDTH}"
    return None


def _serve(op: str, args: tuple[Any, ...], call: _Call) -> tuple[Tensor, Tensor]:
    plan = call.plan()
    special = _specialist(op, args, 1 if plan is None else plan.splits)
    if special is not None:
        return special(*args)
    out, lse = _simt(call) if plan is None else _mma(call, plan)
    return Tensor.wrap(out, call.backend), Tensor.wrap(lse, call.backend)


def _varlen(*args: Any) -> tuple[Tensor, Tensor]:
    q, k, v, cu_q, cu_k, alibi, sinks, options = args
    call = _Call(q, k, v, cu_q, cu_k, None, alibi, sinks, options)
    return _serve("varlen_attention", args, call)


def _paged(*args: Any) -> tuple[Tensor, Tensor]:
    q, k, v, cu_q, table, kv_lens, alibi, sinks, options = args
    if isinstance(k, PackedKV):
        if attention_decode.supports(*args) is None:
            return attention_decode.attend(*args)
        made = unpack(q.backend, k, v, table.data, kv_lens.data, q.dtype)
        k, v, table = (Tensor.wrap(x, q.backend) for x in made)
        args = q, k, v, cu_q, table, kv_lens, alibi, sinks, options
    call = _Call(q, k, v, cu_q, kv_lens, table, alibi, sinks, options)
    return _serve("paged_attention", args, call)


KERNELS = {
    "varlen_attention": Kernel(_varlen, _supports),
    "paged_attention": Kernel(_paged, _supports),
}


def _variants() -> list[Variant]:
    """bf16 as an A100, an RTX 4090 and an H100 take it, f16 as a T4 does; SIMT."""
    made: list[Variant] = []

    def add(
        arch: str, kilobytes: int, head_dim: int, paged: bool, general: bool, few: bool = False
    ) -> None:
        tiles = choose_tiles(head_dim, paged, general, kilobytes * 1024, few)
        if tiles is not None:
            c_type = "f16" if arch == "sm_75" else "bf16"
            defines = tiles.defines(head_dim, c_type, paged, general, split=few)
            made.append(Variant("attention", defines, only=arch))

    for head_dim in HEAD_DIMS:
        add("sm_75", 64, head_dim, False, False)
        for arch, kilobytes in (("sm_80", 163), ("sm_89", 99), ("sm_90a", 227)):
            add(arch, kilobytes, head_dim, True, True)
            if head_dim in (64, 128) or arch == "sm_90a":
                add(arch, kilobytes, head_dim, False, False)
        add("sm_90a", 227, head_dim, True, False)
    for head_dim in (64, 128, 256):
        add("sm_90a", 227, head_dim, True, True, few=True)
    for arch, types in (("sm_75", ("float", "float")), ("sm_90a", ("float", "bf16"))):
        for width, paged in ((64, False), (512, True)):
            defines = _simt_defines(*types, width, paged)
            made.append(Variant("attention_simt", defines, only=arch))
    return made


VARIANTS = _variants()
