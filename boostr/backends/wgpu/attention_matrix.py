"""Attention on tensor cores: `attention_matrix.wgsl`, where the device has subgroup matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.attention_plan import Call, lanes, make_plan, rows_of, sides, together
from boostr.backends.wgpu.kernels import Variant
from boostr.backends.wgpu.wgsl import name_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.array import GpuArray

_SHAPE = ("f16", "f32", 16, 16, 16)
_WIDTHS = range(16, 129, 16)
_FILLS = 264  # workgroups that keep a large GPU busy


@dataclass(frozen=True)
class MatrixTiles:
    """16 * SUBGROUPS queries against BN keys."""

    SUBGROUPS: int = 4
    BN: int = 64

    def shared_bytes(self, D: int, DV: int) -> int:
        """Of the workgroup arrays."""
        rows, line = 16 * self.SUBGROUPS, max(D, DV) // 8 + 1
        row = (self.BN // 4 + 1) + (self.BN // 8 + 1)  # of scores and of probabilities
        return 16 * (max(self.BN, rows) * line + rows * row) + 4 * rows + 8


def choose_tiles(width: int, rows: int = 1 << 30) -> MatrixTiles:
    """The tiles for heads of `width` columns and so many rows of queries, over all heads."""
    few = rows < _FILLS * 64
    return MatrixTiles(2 if few or width <= 64 else 4)


def _whole(x: GpuArray) -> bool:
    """Whether rows of 16-bit numbers can be read 16 bytes at a time."""
    return not any(n % 8 for n in (x.offset, *x.strides[:-1])) and x.strides[-1] == 1


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
        and choose_tiles(max(D, DV)).shared_bytes(D, DV) <= caps.workgroup_bytes
    )


def values(
    tiles: MatrixTiles, kind: str, D: int, DV: int, block: int, sinks: bool
) -> dict[str, Any]:
    """What attention_matrix.wgsl is rendered with."""
    return {"KIND": kind, "D": D, "DV": DV, **asdict(tiles), "BLOCK": block,
            "SINKS": int(sinks), "VECTOR": 1}  # fmt: skip


def attend(call: Call, again: Callable[..., None]) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call that `takes` lets through.

    again: (call, [out, lse], flag), writes them in float32 where the flag is set.
    """
    backend: Any = call.q.backend
    (q, k, v), _ = rows_of(backend, call.q.data, call.k.data, call.v.data)
    (Tq, H, D), (K, DV) = q.shape, v.shape[-2:]
    out, lse = backend.empty((Tq, H, DV), q.dtype), backend.empty((Tq, H), dtypes.float32)
    tiles = choose_tiles(max(D, DV), Tq * H)
    flag = None if q.dtype == dtypes.float16 else backend.empty((4,), dtypes.uint32)
    if lse.size:
        table = None if call.table is None else backend.dense(call.table.data)
        capacity = None if table is None else table.shape[1] * k.shape[1]
        window, sinks = sides(call.options), None if call.sinks is None else call.sinks.data
        plan = make_plan(
            backend, 16 * tiles.SUBGROUPS, Tq, call.cu_q.data, call.b.data, window,
            call.options.bottom_right, (H, None, sinks), capacity, flag,
        )  # fmt: skip
        places = []
        for x in (q, k, v):
            places += [backend.offset(x) // 8, x.strides[-3] // 8, x.strides[-2] // 8]
        blocks = [0 if table is None else x.strides[0] // 8 for x in (k, v)]
        keys = k.shape[0] * (1 if table is None else k.shape[1])
        side = together(H, H // K, keys * (D + DV) * 2)
        backend.launch(
            "attention_matrix", "attention", plan.tiles * H,
            [q, k, v, plan.entries, *([] if table is None else [table])],
            [out, lse] if flag is None else [out, lse, flag],
            (*places, *blocks, 0 if table is None else backend.offset(table),
             0 if table is None else table.shape[1], H, H // K, plan.tiles, side,
             call.cu_q.data.shape[0] - 1, *window, float(call.options.scale * np.log2(np.e))),
            **values(tiles, name_of(q.dtype), D, DV, 0 if table is None else k.shape[1],
                     sinks is not None),
        )  # fmt: skip
        if flag is not None:
            again(call, [out, lse], flag)
    return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)


VARIANTS = [
    Variant("attention_matrix", values(choose_tiles(max(D, DV)), kind, D, DV, block, block > 0),
            ("matrices",))
    for kind, D, DV, block in (
        ("f16", 64, 64, 0), ("bf16", 128, 128, 16), ("f16", 80, 96, 48), ("bf16", 16, 128, 0),
    )
]  # fmt: skip
