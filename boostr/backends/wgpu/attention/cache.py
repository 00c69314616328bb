"""Launches of the kernels of the paged cache; see `shaders/wgsl/attention/cache.wgsl`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import has_dense_rows, row_stride, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.operands import KV, PackedKV
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_MOST_COUNTERS = 4


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
    if isinstance(k_cache, PackedKV) or isinstance(v_cache, PackedKV):
        return refusals.packed_kv(k_cache)
    most = k.backend.caps.binding_bytes  # type: ignore[attr-defined]
    if max(t.nbytes for t in (k, v, k_cache, v_cache)) > most:
        return f"a tensor is larger than the {most} bytes of a binding"
    return refusals.kv_write(k, v, k_cache, v_cache, slots)


def _kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    backend: WgpuBackend = k.backend  # type: ignore[assignment]
    if not slots.size:
        return
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


def _advance(ids: Tensor, chosen: Tensor, counters: list[Tensor]) -> None:
    backend: WgpuBackend = ids.backend  # type: ignore[assignment]
    source = backend.dense(chosen.data)
    if source.buffer.block is ids.data.buffer.block:
        source = backend.copy(source)
    together, apart = [ids.data], []
    blocks = {id(a.buffer.block) for a in (source, ids.data)}
    for counter in (t.data for t in counters):  # a buffer cannot be bound twice to be written
        home = id(counter.buffer.block)
        (apart if home in blocks else together).append(counter)
        blocks.add(home)
    params = [n for a in together for n in (a.size, backend.offset(a))]
    backend.launch(
        "cache", "advance", 1, [source], together, (*params, backend.offset(source)),
        ENTRY="advance", COUNT=len(together),
    )  # fmt: skip
    for counter in apart:
        backend.launch(
            "cache", "increment", 1, [], [counter], (counter.size, backend.offset(counter)),
            ENTRY="increment",
        )  # fmt: skip


KERNELS = {
    "slot_mapping": Kernel(_slot_mapping),
    "kv_write": Kernel(_kv_write, _kv_supports),
    "advance": Kernel(_advance, partial(refusals.advance, _MOST_COUNTERS)),
}

VARIANTS = [
    Variant("cache", {"ENTRY": "slot_mapping"}),
    Variant("cache", {"ENTRY": "advance", "COUNT": 3}),
    Variant("cache", {"ENTRY": "increment"}),
    *(
        Variant("cache", {"ENTRY": "kv_write", "X": x, "C": c, "RUN": run, "COUNT": count})
        for x, c, run, count in (
            ("bf16", "bf16", 8, 2), ("f32", "f32", 4, 2), ("f32", "bf16", 4, 1),
            ("f16", "f16", 2, 2), ("f16", "f32", 1, 2), ("f32", "bf16", 1, 2),
        )
    ),
]  # fmt: skip
