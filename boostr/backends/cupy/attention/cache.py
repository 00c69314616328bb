"""Launches of the kernels of the paged cache; see `shaders/cuda/attention/cache.cu`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import has_dense_rows, power_of_two, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.operands import KV, PackedKV
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_MOST_COUNTERS = 4


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
    if isinstance(k_cache, PackedKV) or isinstance(v_cache, PackedKV):
        return refusals.packed_kv(k_cache)
    if not (k_cache.data.flags.c_contiguous and v_cache.data.flags.c_contiguous):
        return "a cache is not dense"
    return refusals.kv_write(k, v, k_cache, v_cache, slots)


def _kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    backend: CupyBackend = k.backend  # type: ignore[assignment]
    new = [x.data if x.size and has_dense_rows(x.data) else backend.dense(x.data) for x in (k, v)]
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


def _advance(ids: Tensor, chosen: Tensor, counters: list[Tensor]) -> None:
    backend: CupyBackend = ids.backend  # type: ignore[assignment]
    args = [ids.data, backend.dense(chosen.data), ids.size]
    for counter in counters:
        args += [counter.data, counter.size]
    args += [None, 0] * (_MOST_COUNTERS - len(counters))
    backend.launch("cache", "advance", (1,), (256,), args, dependent=True)


KERNELS = {
    "slot_mapping": Kernel(_slot_mapping),
    "kv_write": Kernel(_kv_write, _kv_supports),
    "advance": Kernel(_advance, partial(refusals.advance, _MOST_COUNTERS)),
}

VARIANTS = [
    Variant("cache"),
    *(
        Variant("cache", {"X": x, "C": c, "VEC": run})
        for x, c, run in (
            ("bf16", "bf16", 8), ("float", "float", 4), ("float", "bf16", 8), ("f16", "float", 1),
        )
    ),
]  # fmt: skip
