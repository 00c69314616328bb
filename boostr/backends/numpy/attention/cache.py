"""Launches of the kernels of the paged cache; see `kernels/attention/cache.py`."""

from __future__ import annotations

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.operands import KV, PackedKV, planes_of
from boostr.tensor import Tensor


def _slot_mapping(positions: Tensor, sequence_ids: Tensor, block_table: Tensor, block_size: int):
    backend: NumpyBackend = positions.backend  # type: ignore[assignment]
    reads = [backend.dense(x.data) for x in (positions, sequence_ids, block_table)]
    slots = backend.empty(positions.shape, "int32")
    params = [*map(address, (*reads, slots)), block_table.shape[1], block_size]
    backend.launch(
        "cache.slot_mapping", params, items=positions.size, grain=256, reads=reads, writes=[slots]
    )
    return Tensor.wrap(slots, backend)


def _kv_supports(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor):
    kept = (*planes_of(k_cache), *planes_of(v_cache))
    if not all(plane.data.flags.c_contiguous for plane in kept):
        return "a cache is not dense"
    return not_float32(k, v, *(() if isinstance(k_cache, PackedKV) else kept))


def _kv_write(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor) -> None:
    backend: NumpyBackend = k.backend  # type: ignore[assignment]
    (keys, _, k_stride), (values, _, v_stride) = (rows(backend, x.data) for x in (k, v))
    index = backend.dense(slots.data)
    kept = [plane.data for plane in (*planes_of(k_cache), *planes_of(v_cache))]
    (NB, bs, K, D), Dv = k_cache.shape, v_cache.shape[3]
    new = [address(keys), k_stride, address(values), v_stride]
    packed = isinstance(k_cache, PackedKV)
    sizes = [K, D, Dv] if packed else [K * D, K * Dv]
    constants = {"kv": k_cache.form.name} if packed else {}
    backend.launch(
        "cache.kv_pack" if packed else "cache.kv_write",
        [*new, *map(address, (*kept, index)), *sizes, NB * bs], items=slots.size, grain=16,
        reads=[keys, values, index], writes=kept, **constants,
    )  # fmt: skip


def _advance_rows(state: Tensor, chosen: Tensor, places: Tensor | None) -> None:
    backend: NumpyBackend = state.backend  # type: ignore[assignment]
    reads = [backend.dense(x.data) for x in (chosen, places) if x is not None]
    params = [address(state.data), *map(address, reads), *([0] if places is None else [])]
    backend.launch(
        "cache.advance_rows", [*params, state.shape[1]], items=chosen.size, grain=64, reads=reads,
        writes=[state.data],
    )  # fmt: skip


KERNELS = {
    "slot_mapping": Kernel(_slot_mapping),
    "kv_write": Kernel(_kv_write, _kv_supports),
    "advance_rows": Kernel(_advance_rows),
}
