"""Writing keys and values into a paged cache; `paged_attention` says where positions live."""

from __future__ import annotations

from collections.abc import Sequence

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.ops import core
from boostr.tensor import Tensor


def slot_mapping(
    positions: Tensor, sequence_ids: Tensor, block_table: Tensor, block_size: int
) -> Tensor:
    """The cache row of each token: slot = block · block_size + offset.

    Args:
        positions: int32 [T].   sequence_ids: int32 [T], the row of `block_table` of each token.
        block_table: int32 [B, max_blocks]; it wraps, and a negative entry gives slot -1.
    Returns:
        int32 [T].
    """
    if block_table.dtype != dtypes.int32 or block_table.ndim != 2:
        raise ShapeError(
            "slot_mapping: block_table must be int32 [B, max_blocks], "
            f"got {block_table.dtype}{list(block_table.shape)}"
        )
    for name, x in (("positions", positions), ("sequence_ids", sequence_ids)):
        if x.dtype != dtypes.int32 or x.ndim != 1 or x.shape != positions.shape:
            raise ShapeError(
                f"slot_mapping: {name} must be int32 [T], got {x.dtype}{list(x.shape)}"
            )
    return _slot_mapping(positions, sequence_ids, block_table, block_size)


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Write row t of k and v to slot slots[t] of the caches, in place; negative slots are skipped.

    Args:
        k: [T, K, D].   v: [T, K, Dv].   slots: int32 [T].   k_cache, v_cache: [NB, bs, K, D or Dv].
    """
    if slots.dtype != dtypes.int32 or slots.ndim != 1:
        raise DTypeError(f"kv_write: slots must be int32 [T], got {slots.dtype}{list(slots.shape)}")
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if cache.ndim != 4 or x.shape != (slots.size, *cache.shape[2:]):
            raise ShapeError(
                f"kv_write: {name} must be [T, K, D] and its cache [NB, bs, K, D], with T = "
                f"{slots.size}; got {list(x.shape)} and {list(cache.shape)}"
            )
        if not cache.backend.is_contiguous(cache.data):
            raise BackendError(f"kv_write: {name}_cache is written in place and must be contiguous")
    _kv_write(k.detach(), v.detach(), k_cache, v_cache, slots)


def advance(ids: Tensor, chosen: Tensor, counters: Sequence[Tensor]) -> None:
    """Make a decode step's outcome the next step's input, in place: ids = chosen, counters += 1.

    Args:
        ids, chosen: int32 [B].   counters: int32 tensors (positions, lengths, draws).
    """
    for name, x in (("ids", ids), ("chosen", chosen), *(("a counter", c) for c in counters)):
        if x.dtype != dtypes.int32:
            raise DTypeError(f"advance: {name} must be int32, got {x.dtype}")
    if ids.shape != chosen.shape:
        raise ShapeError(f"advance: ids {list(ids.shape)} and chosen {list(chosen.shape)} differ")
    _advance(ids, chosen, list(counters))


def _advance_composite(ids: Tensor, chosen: Tensor, counters: list[Tensor]) -> None:
    ids.assign(chosen)
    for counter in counters:
        counter.assign(counter + 1)


def _slots(positions, sequence_ids, block_table, block_size) -> Tensor:
    column = core.mod(positions // block_size, block_table.shape[1])
    flat = sequence_ids * block_table.shape[1] + column
    block = core.take(block_table.flatten(), flat)
    return core.where(block >= 0, block * block_size + core.mod(positions, block_size), -1)


def _write(k, v, k_cache, v_cache, slots) -> None:
    for new, cache in ((k, k_cache), (v, v_cache)):
        rows = cache.backend.reshape(cache.data, (-1, *cache.shape[2:]))
        cache.backend.put_rows(rows, slots.data, new.data)


_slot_mapping = Op("slot_mapping", _slots)
_kv_write = Op("kv_write", _write)
_advance = Op("advance", _advance_composite)
