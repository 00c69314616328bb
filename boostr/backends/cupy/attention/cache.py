"""Launches of the kernels of the paged cache; see `cache.cu` and, for packed keys and values,
`cache_packed.cu` in `shaders/cuda/attention/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import has_dense_rows, power_of_two, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.operands import KV, PackedKV, planes_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_WARPS = 4  # of a block, in cache_packed.cu


def _slot_mapping(positions: Tensor, sequence_ids: Tensor, block_table: Tensor, block_size: int):
    backend: CupyBackend = positions.backend  # type: ignore[assignment]
    reads = [backend.dense(x.data) for x in (positions, sequence_ids, block_table)]
    slots = backend.empty(positions.shape, "int32")
    T = positions.size
    backend.launch(
        "cache", "slot_mapping", (-(-T // 256),), (256,),
        [*reads, slots, T, block_table.shape[1], block_size], dependent=True,
    )  # fmt: skip
    return Tensor.wrap(slots, backend)


def _kv_supports(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor):
    kept = (*planes_of(k_cache), *planes_of(v_cache))
    if not all(plane.data.flags.c_contiguous for plane in kept):
        return "a cache is not dense"
    return refusals.kv_write(k, v, k_cache, v_cache, slots)


def _kv_write(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor) -> None:
    backend: CupyBackend = k.backend  # type: ignore[assignment]
    new: Any = [
        x.data if x.size and has_dense_rows(x.data) else backend.dense(x.data) for x in (k, v)
    ]
    if isinstance(k_cache, PackedKV) or isinstance(v_cache, PackedKV):
        return pack(backend, new[0], new[1], k_cache, v_cache, backend.dense(slots.data))
    caches = [k_cache.data, v_cache.data]
    widths = [c.shape[2] * c.shape[3] for c in caches]
    T = slots.size
    if not T or not k.size + v.size:
        return
    strides = [x.strides[0] // x.itemsize if T > 1 else 0 for x in new]
    run = run_length((*widths, *strides), *new, *caches)
    team = min(256, power_of_two(-(-max(widths) // run)))
    blocks = -(-T * team // 256)
    backend.launch(
        "cache", "kv_write", (blocks, 2), (256,),
        [*new, *caches, backend.dense(slots.data), *widths, *map(np.int64, strides),
         k_cache.shape[0] * k_cache.shape[1], T, team],
        dependent=True, X=backend.c_type(k.dtype), C=backend.c_type(k_cache.dtype), VEC=run,
    )  # fmt: skip


def pack(backend: CupyBackend, k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any) -> None:
    """Rows k [T, K, D] and v, of dense heads, into packed caches at `slots` int32 [T], dense."""
    T, K, D = k.shape
    strides = [np.int64(x.strides[0] // x.itemsize if T > 1 else 0) for x in (k, v)]
    NB, bs = k_cache.shape[:2]
    if T * K:
        backend.launch(
            "cache_packed", "kv_pack", (-(-T * K // _WARPS), 2), (32 * _WARPS,),
            [k, v, *_planes(k_cache, v_cache), slots, T, K, D, v.shape[2], *strides, NB * bs],
            dependent=True, X=backend.c_type(k.dtype), BITS=k_cache.form.bits, UNPACK=0,
        )  # fmt: skip


def unpack(
    backend: CupyBackend, k_cache: Any, v_cache: Any, table: Any, lens: Any, dtype: np.dtype
) -> tuple[Any, Any, Any]:
    """Packed blocks as floats, as far as sequences reach: k, v [B · columns, bs, K, D] of `dtype`,
    zeros elsewhere, and the table int32 [B, columns] that names them."""
    (B, columns), (_, bs, K, D), Dv = table.shape, k_cache.shape, v_cache.shape[3]
    made = [backend.empty((B * columns, bs, K, width), dtype) for width in (D, Dv)]
    named = backend.empty((B, columns), np.dtype(np.int32))
    rows = B * columns * bs * K
    if rows:
        backend.launch(
            "cache_packed", "kv_unpack", (-(-rows // _WARPS), 2), (32 * _WARPS,),
            [*_planes(k_cache, v_cache), backend.dense(table), backend.dense(lens), *made, named,
             B, columns, bs, K, D, Dv],
            dependent=True, X=backend.c_type(dtype), BITS=k_cache.form.bits, UNPACK=1,
        )  # fmt: skip
    return *made, named


def _planes(k_cache: Any, v_cache: Any) -> list[Any]:
    return [plane.data for plane in (*k_cache, *v_cache)]


def _advance_rows(state: Tensor, chosen: Tensor, places: Tensor | None) -> None:
    backend: CupyBackend = state.backend  # type: ignore[assignment]
    reads = [None if x is None else backend.dense(x.data) for x in (chosen, places)]
    args = [state.data, *reads, chosen.size, state.shape[1]]
    backend.launch(
        "cache", "advance_rows", (-(-chosen.size // 64),), (64,), args, dependent=True
    )  # fmt: skip


KERNELS = {
    "slot_mapping": Kernel(_slot_mapping),
    "kv_write": Kernel(_kv_write, _kv_supports),
    "advance_rows": Kernel(_advance_rows),
}

VARIANTS = [
    Variant("cache"),
    *(
        Variant("cache", {"X": x, "C": c, "VEC": run})
        for x, c, run in (
            ("bf16", "bf16", 8), ("float", "float", 4), ("float", "bf16", 8), ("f16", "float", 1),
        )
    ),
    *(
        Variant("cache_packed", {"X": x, "BITS": bits, "UNPACK": unpacked})
        for x, bits, unpacked in (
            ("bf16", 8, 0), ("float", 4, 0), ("float", 8, 1), ("bf16", 4, 1), ("f16", 8, 1),
        )
    ),
]  # fmt: skip
