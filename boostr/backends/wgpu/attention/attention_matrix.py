"""Attention on tensor cores: `attention_matrix.wgsl`, where the device has subgroup matrices, and
`attention_halves.wgsl`, which brings keys and values of other forms and places to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.attention.attention_decode_combine import combine
from boostr.backends.wgpu.attention.attention_plan import (
    FAR,
    Call,
    lanes,
    make_plan,
    sides,
    splits_of,
    straight,
    together,
)
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend
    from boostr.backends.wgpu.runtime.array import GpuArray

_SHAPE = ("f16", "f32", 16, 16, 16)
_WIDTHS = range(16, 257, 16)
_MANY = 264 * 64  # rows of queries that keep a large GPU busy
_ROOM = 1056  # workgroups that it holds at once
_MOST_GATHERED = 1 << 29  # bytes of a cache that are copied into f16


@dataclass(frozen=True)
class MatrixTiles:
    """16 * SUBGROUPS queries against BN keys."""

    SUBGROUPS: int = 4
    BN: int = 64

    def shared_bytes(self, D: int, DV: int) -> int:
        """Of the workgroup arrays."""
        rows, line = 16 * self.SUBGROUPS, max(D, DV) // 8 + 1
        row = (self.BN // 4 + 1) + (self.BN // 8 + 1)  # of scores and of probabilities
        wide = max(D, DV) > 128  # queries have room of their own
        lines = self.BN + rows if wide else max(self.BN, rows)
        return 16 * (lines * line + rows * row) + 4 * rows + 8


def choose_tiles(D: int, DV: int, rows: int = 1 << 30) -> MatrixTiles:
    """The tiles for heads of D and DV columns and so many rows of queries, over all heads."""
    if max(D, DV) > 128:
        return MatrixTiles(2, 32)
    short = max(D, DV) <= 64 and rows >= _MANY and not (D % 32 or DV % 32)
    return MatrixTiles(BN=32 if short else 64)


def _whole(x: GpuArray) -> bool:
    """Whether rows of 16-bit numbers can be read 16 bytes at a time."""
    return straight(x) and not any(n % 8 for n in (x.offset, *x.strides[:-1]))


def _gathered_bytes(call: Call) -> int:
    """Of all keys of a paged cache that its table has room for."""
    if call.table is None:
        return 0
    widths = call.k.shape[-1] + call.v.shape[-1]
    return 2 * call.table.size * call.k.shape[1] * call.k.shape[2] * widths


def takes(call: Call) -> bool:
    """Whether tensor cores can serve this call."""
    caps, q, k, v = call.q.backend.caps, call.q.data, call.k.data, call.v.data  # type: ignore
    D, DV = q.shape[-1], v.shape[-1]
    return bool(
        _SHAPE in caps.matrices
        and lanes(caps) == 32
        and q.dtype == k.dtype
        and q.dtype in (dtypes.float16, dtypes.bfloat16)
        and D in _WIDTHS
        and DV in _WIDTHS
        and call.alibi is None
        and not call.options.softcap
        and call.options.scale > 0
        and all(_whole(x) for x in (q, k, v))
        and _gathered_bytes(call) <= _MOST_GATHERED
        and choose_tiles(D, DV).shared_bytes(D, DV) <= caps.workgroup_bytes
    )


def values(
    tiles: MatrixTiles, kind: str, D: int, DV: int, paged: bool, sinks: bool, splits: int = 1
) -> dict[str, Any]:
    """What attention_matrix.wgsl is rendered with."""
    return {"KIND": kind, "D": D, "DV": DV, **asdict(tiles), "PAGED": int(paged),
            "SINKS": int(sinks), "VECTOR": 1, "SPLITS": splits}  # fmt: skip


@dataclass(frozen=True)
class _Halves:
    """Keys and values in f16: k [rows, K, D], v [rows, K, DV]; `capacity` rows a sequence and
    whether each is there, if they come from a paged cache."""

    k: GpuArray
    v: GpuArray
    capacity: int = FAR
    there: GpuArray | None = None


def _halves(call: Call, flag: GpuArray | None) -> _Halves:
    """Those of a call; sets the flag where f16 cannot hold them."""
    backend: WgpuBackend = call.q.backend  # type: ignore[assignment]
    k, v = call.k.data, call.v.data
    if call.table is None and flag is None:
        return _Halves(k, v)
    (K, D), DV = k.shape[-2:], v.shape[-1]
    reads, rows, capacity, block, there = [k, v], k.shape[0], FAR, 0, None
    blocks = [0] * 5  # strides of blocks, and the table's place, columns and lengths
    if call.table is not None:
        table, lens, block = backend.dense(call.table.data), backend.dense(call.b.data), k.shape[1]
        (B, columns), reads = table.shape, [k, v, table, lens]
        capacity = columns * block
        rows = B * capacity
        there = backend.empty((rows,), dtypes.uint32)
        blocks = [k.strides[0] // 8, v.strides[0] // 8, backend.offset(table), columns,
                  backend.offset(lens)]  # fmt: skip
    made = [backend.empty((rows, K, n), dtypes.float16) for n in (D, DV)]
    backend.launch(
        "attention_halves", "halve", -(-rows * K * (D + DV) // (8 * 256)), reads,
        [*made, *(x for x in (there, flag) if x is not None)],
        (rows, K, *_places(backend, k, v), *blocks),
        KIND=name_of(k.dtype), D=D, DV=DV, BLOCK=block,
    )  # fmt: skip
    return _Halves(made[0], made[1], capacity, there)


def _places(backend: WgpuBackend, *arrays: GpuArray) -> list[int]:
    """Where each begins, its rows' and its heads' strides, in 16 bytes."""
    found = [(backend.offset(x), x.strides[-3], x.strides[-2]) for x in arrays]
    return [n // 8 for numbers in found for n in numbers]


def attend(call: Call, again: Callable[..., None]) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call that `takes` lets through.

    again: (call, [out, lse], flag, plan), writes them in float32 where the flag is set.
    """
    backend: WgpuBackend = call.q.backend  # type: ignore[assignment]
    q, options = call.q.data, call.options
    (Tq, H, D), (K, DV) = q.shape, call.v.data.shape[-2:]
    out, lse = backend.empty((Tq, H, DV), q.dtype), backend.empty((Tq, H), dtypes.float32)
    if not lse.size:
        return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)
    tiles = choose_tiles(D, DV, Tq * H)
    splits = splits_of(call, 16 * tiles.SUBGROUPS, _ROOM)
    flag = None if q.dtype == dtypes.float16 else backend.empty((4,), dtypes.uint32)
    capacity = None if call.table is None else call.table.shape[1] * call.k.shape[1]
    window, sinks = sides(options), None if call.sinks is None else call.sinks.data
    plan = make_plan(
        backend, 16 * tiles.SUBGROUPS, Tq, call.cu_q.data, call.b.data, window,
        options.bottom_right, (H, None, sinks), capacity, flag,
    )  # fmt: skip
    keys = _halves(call, flag)
    writes = [out, lse]
    if splits > 1:
        writes = [backend.empty((Tq, H, splits, DV + 4), dtypes.float32)]
    side = together(H, H // K, keys.k.shape[0] * (D + DV) * 2)
    backend.launch(
        "attention_matrix", "attention", plan.tiles * H * splits,
        [q, keys.k, keys.v, plan.entries, *([] if keys.there is None else [keys.there])],
        writes if flag is None else [*writes, flag],
        (*_places(backend, q, keys.k, keys.v), keys.capacity, H, H // K, plan.tiles, side,
         call.cu_q.data.shape[0] - 1, *window, float(options.scale * np.log2(np.e))),
        **values(tiles, name_of(q.dtype), D, DV, keys.there is not None, sinks is not None, splits),
    )  # fmt: skip
    if splits > 1:
        logits = None if sinks is None else backend.dense(sinks)
        cu = backend.dense(call.cu_q.data)
        out, lse = combine(backend, writes[0], DV, logits, cu, q.dtype)
    if flag is not None:
        again(call, [out, lse], flag, plan)
    return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)


VARIANTS = [
    *(
        Variant("attention_matrix",
                values(choose_tiles(D, DV), kind, D, DV, paged, paged, splits), ("matrices",))
        for kind, D, DV, paged, splits in (
            ("f16", 64, 64, False, 1), ("bf16", 128, 128, True, 4), ("f16", 80, 96, True, 3),
            ("bf16", 16, 128, False, 1), ("f16", 256, 256, True, 1),
        )
    ),
    *(
        Variant("attention_halves", {"KIND": kind, "D": D, "DV": DV, "BLOCK": block})
        for kind, D, DV, block in (("bf16", 64, 64, 0), ("bf16", 128, 80, 16), ("f16", 16, 32, 48))
    ),
]  # fmt: skip
