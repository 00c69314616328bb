"""Launches of the kernels of the paged cache; see `cache.wgsl` and, for packed keys and values,
`cache_packed.wgsl` in `shaders/wgsl/attention/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import has_dense_rows, power_of_two, row_stride, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.operands import KV, PackedKV, planes_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_THREADS = 64  # of a workgroup of cache_packed.wgsl


def _slot_mapping(positions: Tensor, sequence_ids: Tensor, block_table: Tensor, block_size: int):
    backend: WgpuBackend = positions.backend  # type: ignore[assignment]
    reads = [backend.dense(x.data) for x in (positions, sequence_ids, block_table)]
    slots = backend.empty(positions.shape, "int32")
    T = positions.size
    backend.launch(
        "cache", "slot_mapping", -(-T // 64), reads, [slots],
        (T, block_table.shape[1], block_size, *map(backend.offset, reads)), ENTRY="slot_mapping",
    )  # fmt: skip
    return Tensor.wrap(slots, backend)


def _kv_supports(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor):
    most = k.backend.caps.binding_bytes  # type: ignore[attr-defined]
    if max(t.nbytes for t in (k, v, *planes_of(k_cache), *planes_of(v_cache))) > most:
        return f"a tensor is larger than the {most} bytes of a binding"
    return packed_refusal(k_cache, v_cache) or refusals.kv_write(k, v, k_cache, v_cache, slots)


def packed_refusal(*kept: KV) -> str | None:
    """Why kernels do not take these keys and values, if they are packed; None if they do."""
    packed = [cache for cache in kept if isinstance(cache, PackedKV)]
    planes = [plane for cache in packed for plane in cache]
    for cache in packed:
        D, words = cache.shape[3], _THREADS * 32 // cache.form.bits
        if D % 4 or words < D:
            return f"packed heads of {D}: kernels take words of 4 numbers, {words} at most"
    if not all(p.data.contiguous and p.data.offset * p.dtype.itemsize % 8 == 0 for p in planes):
        return "a packed cache is not dense, or does not begin at 8 bytes"
    if len({id(p.data.buffer.block) for p in planes}) < len(planes):
        return "planes of a packed cache share a buffer"
    return None


def _kv_write(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor) -> None:
    backend: WgpuBackend = k.backend  # type: ignore[assignment]
    if not slots.size:
        return
    if isinstance(k_cache, PackedKV) or isinstance(v_cache, PackedKV):
        return pack(backend, k.data, v.data, k_cache, v_cache, slots.data)
    new = [x.data if has_dense_rows(x.data) else backend.dense(x.data) for x in (k, v)]
    places = backend.dense(slots.data)
    pairs = [(x, c.data) for x, c in zip(new, (k_cache, v_cache), strict=True) if x.size]
    if len({id(c.buffer.block) for _, c in pairs}) == len(pairs) == 2:
        _write(backend, pairs, places)
    else:  # a buffer cannot be bound twice to be written
        for pair in pairs:
            _write(backend, [pair], places)


def _write(backend: WgpuBackend, pairs: list[tuple[Any, Any]], slots: Any) -> None:
    """Pairs of new rows [T, K, D] and the cache [NB, bs, K, D] that takes them."""
    lengths = []
    for x, cache in pairs:
        width = cache.shape[2] * cache.shape[3]
        lengths.append([width, row_stride(x), backend.offset(x), backend.offset(cache)])
    x, cache = pairs[0]
    both = (x.dtype.itemsize, cache.dtype.itemsize)
    run = next(
        run for run in ((8, 4, 2, 1) if both == (2, 2) else (4, 2, 1))
        if not any(n % run for each in lengths for n in each)
    )  # fmt: skip
    run = 1 if run == 2 and cache.dtype.itemsize == 4 else run
    T = slots.size
    count = T * sum(each[0] for each in lengths) // run
    total = cache.shape[0] * cache.shape[1]
    backend.launch(
        "cache", "kv_write", -(-count // 128), [slots, *(x for x, _ in pairs)],
        [c for _, c in pairs],
        (T, total, backend.offset(slots), *(n // run for each in lengths for n in each)),
        ENTRY="kv_write", X=type_of(x), C=type_of(cache), RUN=run, COUNT=len(pairs),
    )  # fmt: skip


def pack(backend: WgpuBackend, k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any) -> None:
    """Rows k [T, K, D] and v [T, K, Dv] into packed caches at `slots` int32 [T]."""
    places, lengths, reads, writes = backend.dense(slots), [], [], []
    (T, K, _), (NB, bs) = k.shape, k_cache.shape[:2]
    for x, cache in ((k, k_cache), (v, v_cache)):
        numbers = (backend.offset(x), row_stride(x))
        if not has_dense_rows(x) or any(n % 4 for n in numbers):
            x = backend.copy(x)
        reads.append(x)
        writes += [plane.data for plane in cache]
        lengths += [row_stride(x), backend.offset(x), *_words(backend, cache)]
    bits, widths = k_cache.form.bits, (k.shape[2], v.shape[2])
    lanes = power_of_two(max(widths) * bits // 32)
    backend.launch(
        "cache_packed", "kv_pack", -(-2 * T * K * lanes // _THREADS), [places, *reads], writes,
        (T * K, K, NB * bs, backend.offset(places), *lengths),
        ENTRY="kv_pack", BITS=bits, X=type_of(k), WIDTHS=widths, LANES=lanes,
    )  # fmt: skip


def unpack(
    backend: WgpuBackend, cache: PackedKV, table: Any, lens: Any, dtype: np.dtype
) -> tuple[Any, Any]:
    """Packed blocks as floats, as far as sequences reach: [B · columns, bs, K, D] of `dtype`, zeros
    elsewhere, and the table int32 [B, columns] that names them."""
    (B, columns), (_, bs, K, D), bits = table.shape, cache.shape, cache.form.bits
    made = backend.empty((B * columns, bs, K, D), dtype)
    named = backend.empty((B, columns), np.dtype(np.int32))
    table, lens = backend.dense(table), backend.dense(lens)
    count = made.size * bits // 32
    backend.launch(
        "cache_packed", "kv_unpack", -(-count // _THREADS),
        [*(plane.data for plane in cache), table, lens], [made, named],
        (count, columns, bs, K, *_words(backend, cache), backend.offset(table),
         backend.offset(lens)),
        ENTRY="kv_unpack", BITS=bits, X=type_of(made), WIDTHS=(D,),
    )  # fmt: skip
    return made, named


def _words(backend: WgpuBackend, cache: PackedKV) -> list[int]:
    """Where planes begin, in words of what is bound."""
    return [backend.offset(plane.data) * plane.dtype.itemsize // 4 for plane in cache]


def _advance_rows(state: Tensor, chosen: Tensor, places: Tensor | None) -> None:
    backend: WgpuBackend = state.backend  # type: ignore[assignment]
    reads = [backend.dense(x.data) for x in (chosen, places) if x is not None]
    reads = [backend.copy(x) if x.buffer.block is state.data.buffer.block else x for x in reads]
    params = [chosen.size, state.shape[1], *map(backend.offset, (state.data, *reads))]
    backend.launch(
        "cache", "advance_rows", -(-chosen.size // 64), reads, [state.data],
        params if places is not None else [*params, 0], ENTRY="advance_rows",
        PLACES=int(places is not None),
    )  # fmt: skip


KERNELS = {
    "slot_mapping": Kernel(_slot_mapping),
    "kv_write": Kernel(_kv_write, _kv_supports),
    "advance_rows": Kernel(_advance_rows),
}

VARIANTS = [
    Variant("cache", {"ENTRY": "slot_mapping"}),
    Variant("cache", {"ENTRY": "advance_rows", "PLACES": 0}),
    Variant("cache", {"ENTRY": "advance_rows", "PLACES": 1}),
    *(
        Variant("cache", {"ENTRY": "kv_write", "X": x, "C": c, "RUN": run, "COUNT": count})
        for x, c, run, count in (
            ("bf16", "bf16", 8, 2), ("f32", "f32", 4, 2), ("f32", "bf16", 4, 1),
            ("f16", "f16", 2, 2), ("f16", "f32", 1, 2), ("f32", "bf16", 1, 2),
        )
    ),
    *(
        Variant("cache_packed", {
            "ENTRY": "kv_pack", "BITS": bits, "X": x, "WIDTHS": widths, "LANES": lanes,
        })
        for bits, x, widths, lanes in ((8, "bf16", (80, 64), 32), (4, "f32", (256, 32), 32))
    ),
    *(
        Variant("cache_packed", {"ENTRY": "kv_unpack", "BITS": bits, "X": x, "WIDTHS": (D,)})
        for bits, x, D in ((8, "f32", 80), (4, "bf16", 64))
    ),
]  # fmt: skip
