"""What the tiled attention kernels on WebGPU share: their arguments, and the list of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend
    from boostr.backends.wgpu.runtime.array import GpuArray
    from boostr.backends.wgpu.runtime.device import Caps
    from boostr.options import AttentionOptions

FAR = 1 << 30  # a window side without limit, a cache that does not wrap
_CACHED = 24 << 20  # bytes of keys and values that should stay in the GPU's cache
_THREADS = 64
_LEAST_KEYS, _MOST_SPLITS = 512, 16  # of a workgroup that shares a tile's keys; of a tile
_STEPS = (1, 2, 4, 8, 16, 32)  # of the scan of the kernel that makes the list


def lanes(caps: Caps) -> int:
    """Threads of a subgroup, at least: some drivers of NVIDIA's GPUs, which have 32, report 4."""
    known = 32 if "nvidia" in caps.vendor.lower() else caps.subgroup_min
    return min(known, caps.subgroup_max)


def straight(x: GpuArray) -> bool:
    """Whether a row's elements lie side by side, and rows and heads forwards."""
    return (x.shape[-1] == 1 or x.strides[-1] == 1) and min(x.strides) >= 0


def aligned(backend: WgpuBackend, x: GpuArray) -> bool:
    """Whether rows can be read four elements at a time."""
    return not any(n % 4 for n in (x.shape[-1], backend.offset(x), *x.strides[:-1]))


def rows_of(backend: WgpuBackend, *arrays: GpuArray) -> tuple[list[GpuArray], bool]:
    """(the arrays [..., heads, D], copied where a kernel cannot read them; whether in fours)."""
    ready = [x if straight(x) else backend.copy(x) for x in arrays]
    if all(x.shape[-1] % 4 == 0 for x in ready):
        ready = [x if x.ndim > 3 or aligned(backend, x) else backend.copy(x) for x in ready]
    return ready, all(aligned(backend, x) for x in ready)


def sides(options: AttentionOptions) -> tuple[int, int]:
    """How many keys before and after a query's position it sees."""
    left = FAR if options.left < 0 else options.left
    right = FAR if options.right < 0 else options.right
    return left, 0 if options.causal else right


@dataclass(frozen=True)
class Plan:
    """A list on the device of tiles of `rows` (see attention_plan.wgsl), and their number."""

    entries: GpuArray
    tiles: int
    rows: int


def make_plan(
    backend: WgpuBackend,
    tile: int,
    rows: int,
    cu_a: GpuArray,
    b: GpuArray,
    window: tuple[int, int],
    bottom_right: bool,
    per_head: tuple[int, GpuArray | None, GpuArray | None] = (0, None, None),
    capacity: int | None = None,
    flag: GpuArray | None = None,
) -> Plan:
    """Tiles of `tile` of the `rows` rows that cu_a divides, and what they see of the other side.

    b: the other side's cu_seqlens, or with a `capacity` (rows of a sequence's cache) its lengths.
    window: how far a row sees back and forth.   per_head: H, slopes, sinks.   flag: uint32, whose
        first word becomes 0.
    """
    B = cu_a.shape[0] - 1
    tiles = rows // tile + B + 1
    H, slopes, sinks = per_head
    entries = backend.empty((8 * tiles + 2 * H,), np.dtype(np.int32))
    reads = [backend.dense(x) for x in (cu_a, b)]
    reads += [reads[0] if x is None else backend.dense(x) for x in (slopes, sinks)]
    starts = [backend.offset(x) for x in reads]
    backend.launch(
        "attention_plan", "attention_plan", (1, 1, 1), reads,
        [entries] if flag is None else [entries, flag],
        (rows, B, tile, tiles, *window, int(bottom_right), FAR if capacity is None else capacity, H,
         *starts),
        THREADS=_THREADS, PAGED=int(capacity is not None), ALIBI=int(slopes is not None),
        SINKS=int(sinks is not None), FLAG=int(flag is not None), STEPS=_STEPS,
    )  # fmt: skip
    return Plan(entries, tiles, tile)


def together(heads: int, group: int, head_bytes: int) -> int:
    """How many query heads run side by side: as many as keep their keys and values cached."""
    fit = max(1, _CACHED // max(1, head_bytes))
    kv_heads = heads // group
    return group * max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= fit)


@dataclass(frozen=True)
class Call:
    """The arguments of either op; b is cu_seqlens_k, or kv_lens beside a `table`."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_q: Tensor
    b: Tensor
    table: Tensor | None
    alibi: Tensor | None
    sinks: Tensor | None
    options: AttentionOptions


def splits_of(call: Call, rows: int, room: int) -> int:
    """Workgroups for the keys of a tile of `rows` queries: more than one where few queries, as in
    a turn of a chat, meet many keys, and most of the GPU would wait.

    room: workgroups that a large GPU holds at once.
    """
    Tq, H, _ = call.q.data.shape
    B, options = call.cu_q.data.shape[0] - 1, call.options
    keys = call.k.data.shape[0] // B
    if call.table is not None:
        keys = call.table.data.shape[1] * call.k.data.shape[1]
    if options.left >= 0 and (options.causal or options.right >= 0):
        keys = min(keys, options.left + max(options.right, 0) + Tq // B)
    room //= max(1, (Tq // rows + B) * H)
    if call.q.backend.caps.kind != "discrete":  # type: ignore[attr-defined]
        return 1
    return max(1, min(room, keys // _LEAST_KEYS, _MOST_SPLITS))


VARIANTS = [
    Variant("attention_plan", {"THREADS": _THREADS, "PAGED": n, "ALIBI": n, "SINKS": n,
                               "FLAG": n, "STEPS": _STEPS})
    for n in (0, 1)
]  # fmt: skip
