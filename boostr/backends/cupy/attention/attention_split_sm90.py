"""Attention of few queries over many keys on Hopper: launches of `attention_split_sm90.cu`.

A turn of a chat asks with some dozens of tokens what a paged cache of thousands holds: too few work
items for `attention_sm90`. Here a cluster of blocks shares the keys of an item, and the heads of a
kv head share its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.cupy.attention import attention_sm90 as whole
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.backends.cupy.runtime.tensor_map import tensor_map
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

FAMILY = "attention_split_sm90"
SPLITS = (8, 6, 4, 3, 2)  # blocks of a cluster; 8 is the most that every Hopper has room for
ROWS = 128  # of an item: tokens times heads


# -- how a call is cut -----------------------------------------------------------------------------
def pack_of(group: int, alibi: bool) -> int:
    """How many of a kv head's `group` heads share a tile; one, where each has a slope."""
    return 1 if alibi else next(n for n in (8, 4, 2, 1) if group % n == 0)


def items_of(T: int, B: int, H: int, pack: int) -> int:
    """Work items that are enough for any cu_seqlens of B segments over T tokens."""
    return (-(-T * pack // ROWS) + B - 1) * (H // pack)


def splits_of(items: int, keys: int, sms: int) -> int:
    """Blocks that share the keys of an item: as many as pay; 1: none share."""
    return next((s for s in SPLITS if _pays(s, items, keys // whole.PAGE_TILE, sms)), 1)


def _pays(splits: int, items: int, tiles: int, sms: int) -> bool:
    """Pairs fill the GPU. Larger clusters find room at once on three quarters of it (128 queries
    over 4096 keys of 1B's heads on an H200: 22 us by 96 blocks, 34 by 128), and start late behind
    another kernel, which some tiles of keys must be worth."""
    if splits == 2:
        return items * 2 <= sms and tiles >= 4
    return items * splits <= sms * 3 // 4 and tiles >= 8 * splits


def _keys(T: int, B: int, capacity: int, options: Any) -> int:
    """About how many keys the queries of a segment see; their numbers are on the device."""
    if options.left >= 0 and (options.causal or options.right >= 0):
        return min(capacity, options.left + max(options.right, 0) + T // B)
    return capacity


def _cut(
    q: Tensor, k_cache: Tensor, cu: Tensor, table: Tensor, alibi: Any, options: Any
) -> tuple[int, int, int]:
    """(heads of a tile, work items, blocks of an item)."""
    backend: CupyBackend = q.backend  # type: ignore[assignment]
    T, H, _ = q.shape
    B = cu.size - 1
    pack = pack_of(H // k_cache.shape[-2], alibi is not None)
    items = items_of(T, B, H, pack)
    keys = _keys(T, B, table.shape[1] * k_cache.shape[1], options)
    return pack, items, splits_of(items, keys, backend.caps.sms)


def _defines(dtype: str, D: int, splits: int, pack: int, flags: dict[str, int]) -> dict[str, Any]:
    tile = whole.tiles(D, flags, True) | {"Q_BUFFERS": 1}
    return whole.variant(dtype, D, flags, tile) | {"SPLIT": splits, "PACK": pack}


# -- the op ----------------------------------------------------------------------------------------
def supports(
    q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, sinks, options
) -> str | None:
    """None, or why this kernel cannot or should not serve op "paged_attention"."""
    refusal = whole.paged_supports(
        q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, sinks, options
    )
    if refusal is not None:
        return refusal
    if _cut(q, k_cache, cu_seqlens_q, block_table, alibi, options)[2] == 1:
        return f"{q.shape[0]} queries fill the GPU, or see few keys"
    return None


def run(
    q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, sinks, options
) -> tuple[Tensor, Tensor]:
    """Op "paged_attention"."""
    backend: CupyBackend = q.backend
    (Tq, H, D), B, (bs, K) = q.shape, cu_seqlens_q.size - 1, k_cache.shape[1:3]
    pack, items, splits = _cut(q, k_cache, cu_seqlens_q, block_table, alibi, options)
    flags = whole.flags_of(options, alibi, sinks, paged=True)
    defines = _defines(backend.c_type(q.dtype), D, splits, pack, flags)
    read = [whole.mappable_rows(backend, x.data) for x in (q, k_cache, v_cache)]
    boxes = (ROWS // pack, pack), (defines["TILE_N"], 1), (defines["TILE_N"], 1)
    maps = [tensor_map(x, (*box, 64)) for x, box in zip(read, boxes, strict=True)]
    cu, lens, table = (backend.dense(x.data) for x in (cu_seqlens_q, kv_lens, block_table))
    out, lse = backend.empty((Tq, H, D), q.dtype), backend.empty((Tq, H), np.dtype(np.float32))
    backend.launch(
        FAMILY, "attention_split", (splits, items), (128 * (defines["CONSUMERS"] + 1),),
        (*maps, out, lse, cu, lens, table, whole.dense_float32(backend, alibi),
         whole.dense_float32(backend, sinks), Tq, B, H, K, table.shape[1], bs,
         *whole.mask_and_scales(options)),
        shared_bytes=whole.shared_bytes(D, defines), dependent=True, **defines,
    )  # fmt: skip
    return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)


# -- for the compile gate --------------------------------------------------------------------------
_CAUSAL = {"RIGHT": 1, "LEFT": 1, "PAGED": 1, "SOFTCAP": 0, "ALIBI": 0, "SINKS": 0}
VARIANTS = [
    Variant(FAMILY, _defines(dtype, D, splits, pack, flags), least=90, only="sm_90a")
    for dtype, D, splits, pack, flags in (
        ("bf16", 64, 3, 4, _CAUSAL), ("bf16", 64, 8, 4, _CAUSAL), ("bf16", 128, 2, 8, _CAUSAL),
        ("bf16", 128, 6, 4, _CAUSAL), ("f16", 64, 2, 1, _CAUSAL),
        ("bf16", 64, 8, 2, _CAUSAL | {"RIGHT": 0, "SOFTCAP": 1, "SINKS": 1}),
        ("bf16", 128, 8, 1, _CAUSAL | {"SOFTCAP": 1, "ALIBI": 1, "SINKS": 1}),
    )
]  # fmt: skip
