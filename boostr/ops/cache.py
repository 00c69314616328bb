"""Writing keys and values into a paged cache; `paged_attention` says where positions live."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from boostr import dtypes
from boostr.backends.base import Backend
from boostr.dispatch import Op
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.operands import KV, PackedKV, planes_of
from boostr.ops import core
from boostr.quant.kv import KVForm
from boostr.tensor import Tensor, zeros


def slot_mapping(
    positions: Tensor, sequence_ids: Tensor, block_table: Tensor, block_size: int
) -> Tensor:
    """The cache row of each token: slot = block · block_size + offset.

    Args:
        positions: int32 [T].   sequence_ids: int32 [T], the row of `block_table` of each token;
            negative: the token is of no sequence, and has slot -1.
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


def new_kv(
    shape: Sequence[int], stored: np.dtype | KVForm, backend: str | Backend | None = None
) -> KV:
    """Room for keys or values [NB, bs, K, D], zeros: floats of a dtype, or packed in a form."""
    if not isinstance(stored, KVForm):
        return zeros(shape, stored, backend)
    *lead, D = shape
    codes, scales = stored.widths(D)
    return PackedKV(
        zeros((*lead, codes), stored.codes_dtype, backend),
        zeros((*lead, scales), stored.scales_dtype, backend),
    )


def kv_write(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor) -> None:
    """Write row t of k and v to slot slots[t] of the caches, in place; negative slots are skipped.

    Packed caches round what they are given (`boostr/quant/kv.py`). A group with a nan or an
    infinity has the scale nan, so that attention to it gives nan.

    Args:
        k: [T, K, D].   v: [T, K, Dv].   slots: int32 [T].   k_cache, v_cache: [NB, bs, K, D or Dv].
    """
    if slots.dtype != dtypes.int32 or slots.ndim != 1:
        raise DTypeError(f"kv_write: slots must be int32 [T], got {slots.dtype}{list(slots.shape)}")
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if len(cache.shape) != 4 or x.shape != (slots.size, *cache.shape[2:]):
            raise ShapeError(
                f"kv_write: {name} must be [T, K, D] and its cache [NB, bs, K, D], with T = "
                f"{slots.size}; got {list(x.shape)} and {list(cache.shape)}"
            )
        if not all(plane.backend.is_contiguous(plane.data) for plane in planes_of(cache)):
            raise BackendError(f"kv_write: {name}_cache is written in place and must be contiguous")
    kinds = [c.form.name if isinstance(c, PackedKV) else "floats" for c in (k_cache, v_cache)]
    if kinds[0] != kinds[1]:
        raise DTypeError(
            f"kv_write: k_cache and v_cache must be floats or packed alike, got {kinds[0]} and "
            f"{kinds[1]}"
        )
    _kv_write(k.detach(), v.detach(), k_cache, v_cache, slots)


def packed_rows(x: Tensor, form: KVForm) -> tuple[Tensor, Tensor]:
    """(codes, scales) of rows [..., D], as `boostr/quant/kv.py` has them."""
    *lead, D = x.shape
    groups = core.cast(x, dtypes.float32).reshape(*lead, -1, form.group or D)
    if form.floors:
        codes, scales = _nibbles(groups)
    else:
        scales = _number(core.max(core.abs(groups), -1, keepdims=True) / 127)
        codes = _rounded(groups, scales, -127, 127)
    codes = core.cast(codes, form.codes_dtype)
    if form.bits == 4:
        half = form.group // 2
        codes = codes[..., :half] | (codes[..., half:] << 4)
    return codes.reshape(*lead, -1), scales.reshape(*lead, -1)


def unpacked_rows(packed: PackedKV) -> Tensor:
    """The numbers float32 [..., D] that codes and scales stand for."""
    codes, scales = packed
    lead, form = scales.shape[:-1], packed.form
    scales = core.cast(scales, dtypes.float32).reshape(*lead, -1, 2 if form.floors else 1)
    numbers = codes.reshape(*lead, scales.shape[-2], -1)
    if form.bits == 4:
        numbers = core.concat([numbers & 15, numbers >> 4], -1)
    numbers = core.cast(numbers, dtypes.float32) * scales[..., :1]
    return (numbers + scales[..., 1:] if form.floors else numbers).reshape(*lead, -1)


def _nibbles(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(codes 0 .. 15 as floats, scale and floor bfloat16 [..., 2]) of groups."""
    low, high = (reduce(groups, -1, keepdims=True) for reduce in (core.min, core.max))
    floor = core.cast(low, dtypes.bfloat16)
    above = core.cast(floor, dtypes.float32)
    scale = core.cast(_number((high - above) / 15), dtypes.bfloat16)
    codes = _rounded(groups - above, core.cast(scale, dtypes.float32), 0, 15)
    return codes, core.concat([scale, floor], -1)


def _rounded(x: Tensor, scales: Tensor, least: float, most: float) -> Tensor:
    codes = core.round(x / core.where(scales > 0, scales, 1.0))
    return core.minimum(core.maximum(codes, least), most)


def _number(scales: Tensor) -> Tensor:
    """Scales, nan where they are infinite."""
    return core.where(scales < math.inf, scales, math.nan)


def _slots(positions, sequence_ids, block_table, block_size) -> Tensor:
    column = core.mod(positions // block_size, block_table.shape[1])
    flat = core.maximum(sequence_ids, 0) * block_table.shape[1] + column
    block = core.where(sequence_ids >= 0, core.take(block_table.flatten(), flat), -1)
    return core.where(block >= 0, block * block_size + core.mod(positions, block_size), -1)


def _write(k, v, k_cache, v_cache, slots) -> None:
    for x, cache in ((k, k_cache), (v, v_cache)):
        new = packed_rows(x, cache.form) if isinstance(cache, PackedKV) else (x,)
        for plane, rows in zip(planes_of(cache), new, strict=True):
            flat = plane.backend.reshape(plane.data, (-1, *plane.shape[2:]))
            plane.backend.put_rows(flat, slots.data, rows.data)


_slot_mapping = Op("slot_mapping", _slots)
_kv_write = Op("kv_write", _write)
