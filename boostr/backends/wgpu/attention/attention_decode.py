"""Attention of few queries per sequence over a paged cache: partials over the keys, then combined.

The grid depends on shapes alone: `attention_decode.wgsl` reads lengths, and a captured step serves
all. Splits are joined by `combine`, or by who reads them (`attention_decode_parts.wgsl`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from boostr import dtypes
from boostr.backends.wgpu.attention.attention_decode_combine import combine
from boostr.backends.wgpu.attention.cache import packed_refusal
from boostr.backends.wgpu.rows.rows import power_of_two
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.operands import KV, PackedKV, planes_of
from boostr.options import AttentionOptions
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

FEW = 8  # queries per sequence, on average, up to which this is the way
MAX_DIM = 256
_FAMILY = "attention_decode"
_FAR = 1 << 29  # a window side beyond every position
_MOST_GROUPS = 65535  # of a grid, in each direction
# workgroups that fill a device, by its kind: the most for which keys are split
_FILLS = {"discrete": 132, "integrated": 48, "software": 8}
_LEAST_GRAIN = 64  # keys
# bytes of partials that a workgroup of their reader may join; of keys and values in each of them
_IN_READER, _OF_SPLIT = 48 << 10, 256 << 10
_BINDINGS = 10  # arrays that a kernel of packed keys and values sees


# -- what a call needs ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Call:
    """Shapes and types of one call, from which the launch follows."""

    q: str
    cache: str  # dtype of keys and values, or of their codes
    T: int
    H: int
    K: int
    D: int
    Dv: int
    B: int
    capacity: int  # keys that one query can see at most
    shift: int  # log2 of the block size; -1: no power of 2, -2: one block for each sequence
    aligned: bool  # rows are whole 16-byte words
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False

    @property
    def queries(self) -> int:
        """Per sequence, on average, rounded up."""
        return max(1, -(-self.T // self.B))


@dataclass(frozen=True)
class Plan:
    """A specialisation of the kernel and its launch.

    Attributes:
        rows: (query, head) pairs of a workgroup.   lanes: threads that share a key.
        unroll: keys that each of these groups takes at once.
        join: of these groups, neighbours that are merged by shuffles.
        at_once: rows whose sums are merged together, as shared memory has room.
        tiles: workgroups for the rows of a sequence and kv head, if all have as many queries.
        splits: S, the most ranges that a sequence's keys are cut into.   grain: their fewest keys.
    """

    rows: int
    lanes: int
    threads: int
    unroll: int
    join: int
    at_once: int
    subgroups: bool
    tiles: int
    splits: int
    grain: int

    def values(self, call: Call, finish: bool, lse: bool = True) -> dict[str, Any]:
        """What the source is rendered with."""
        room = self.at_once * self.threads * _pieces(call.Dv, self.lanes) * 2 // self.join
        joined = [self.lanes << i for i in range(self.join.bit_length() - 1)]
        if not self.subgroups:
            room = max(room, self.rows * self.threads)
        return {
            "Q": call.q, "CACHE": call.cache, "D": call.D, "DV": call.Dv,
            "HEADS": call.H // call.K, "ROWS": self.rows, "LANES": self.lanes,
            "THREADS": self.threads, "UNROLL": self.unroll, "AT_ONCE": self.at_once,
            "JOIN": self.join, "JOINED": tuple(joined), "ROOM": room, "VEC": call.aligned,
            "SHIFT": call.shift, "SOFTCAP": call.softcap, "ALIBI": call.alibi,
            "FINISH": finish, "LSE": lse, "SUBGROUPS": self.subgroups,
        }  # fmt: skip


def _pieces(width: int, lanes: int) -> int:
    """Pieces of 8 elements of a row that each lane has."""
    return (width + 8 * lanes - 1) // (8 * lanes)


def _rows(call: Call, most: int, fills: int, max_splits: int) -> int:
    """Rows of a workgroup: where keys are few, as few as do not take more workgroups than fill the
    device (twice as many small ones do), which would idle and may as well read them again."""
    rows, all_rows = 1, call.H // call.K * call.queries
    for_one = call.K * call.B * min(-(-call.capacity // _LEAST_GRAIN), max_splits)
    while rows < min(most, all_rows) and for_one * -(-all_rows // rows) > 2 * fills:
        rows *= 2
    return min(rows, most, all_rows)


@lru_cache(1024)
def plan(call: Call, caps: Caps, max_splits: int = 1 << 20, **chosen: Any) -> Plan:
    """How to run a call. `chosen` overrides fields: benchmarks and tests compare them."""
    pieces = power_of_two(-(-max(call.D, call.Dv) // 8))
    subgroups = chosen.get("subgroups", caps.subgroup_max > 1)
    reach = caps.subgroup_min if subgroups else 8
    lanes = chosen.get("lanes", max(1, min(pieces, reach)))
    each = _pieces(max(call.D, call.Dv), lanes)
    small = caps.kind == "software"  # where code is slow to compile
    most = max(1, (2 if small else 8 if lanes > 4 else 4) // each)  # registers
    fills = chosen.get("fills", _FILLS[caps.kind])
    rows = chosen.get("rows") or _rows(call, most, fills, max_splits)
    many = 512 if caps.kind == "discrete" and subgroups else 32 if small else 64
    threads = chosen.get("threads", min(many, caps.workgroup_threads))
    threads = max(threads, lanes)
    known = subgroups and caps.subgroup_min == caps.subgroup_max
    join = chosen.get("join", max(1, min(reach, threads) // lanes if known else 1))
    per_row = threads * _pieces(call.Dv, lanes) * 2 // join
    exchange = 0 if subgroups else rows * threads
    room = caps.workgroup_bytes // 8 - rows * threads // lanes  # beside stats, which take 8 bytes
    while threads > lanes * join and 2 * max(per_row, exchange) > room:
        threads, per_row, exchange = threads // 2, per_row // 2, exchange // 2
        room += rows * threads // lanes
    at_once = rows
    while at_once > 1 and 2 * at_once * per_row > room:
        at_once = -(-at_once // 2)
    unroll = chosen.get("unroll", 2 if small or threads > 256 else 4)
    tiles = -(-call.H // call.K * call.queries // rows)
    grain = chosen.get("grain", max(threads // lanes * unroll, _LEAST_GRAIN))
    wanted = max(1, fills // (call.K * tiles * call.B))  # more would wait for the first to end
    splits = min(wanted, -(-call.capacity // grain), max_splits, _MOST_GROUPS)
    splits = chosen.get("splits", max(1, splits))
    return Plan(rows, lanes, threads, unroll, join, at_once, subgroups, tiles, splits, grain)


# -- arrays ---------------------------------------------------------------------------------------
def _row_stride(cache: Any) -> int | None:
    """Elements from one position's row to the next if they are evenly spaced over all blocks."""
    NB, bs = cache.shape[:2]
    if cache.size == 0:
        return 0
    stride = cache.strides[0] if bs == 1 else cache.strides[1]
    even = NB == 1 or bs == 1 or cache.strides[0] == bs * stride
    return stride if even and cache.strides[3] == 1 and stride >= 0 else None


def _aligned(backend: WgpuBackend, x: Any, to: int) -> bool:
    """Whether every row begins at a multiple of `to` elements and ends at one."""
    numbers = (backend.offset(x), x.shape[-1], *x.strides[:-1])
    return x.strides[-1] == 1 and not any(n % to for n in numbers)


def _capacity(block_table: Any, bs: int, T: int, options: AttentionOptions) -> int:
    """Keys that the queries of one sequence can see together."""
    rows = block_table.shape[1] * bs
    right = 0 if options.causal else options.right
    if options.left >= 0 and right >= 0:
        rows = min(rows, options.left + right + T)
    return max(rows, 1)


def supports(
    q: Tensor, k_cache: KV, v_cache: KV, cu_seqlens_q: Tensor, block_table: Tensor,
    kv_lens: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: AttentionOptions,
) -> str | None:  # fmt: skip
    """None if these arguments are for this kernel, else why not."""
    backend: WgpuBackend = q.backend  # type: ignore[assignment]
    B, (codes, *scales) = kv_lens.size, planes_of(k_cache)
    if any(t.dtype not in dtypes.MODEL_FLOATS for t in (q, *([] if scales else [codes]))):
        return f"dtypes {q.dtype}, {codes.dtype} not in float32, float16, bfloat16"
    if scales and (reason := _packed_refusal(backend, k_cache, v_cache)) is not None:
        return reason
    if max(q.shape[2], v_cache.shape[3]) > MAX_DIM or not min(q.shape[2], v_cache.shape[3]):
        return f"head_dim {q.shape[2]}, {v_cache.shape[3]} is not in 1..{MAX_DIM}"
    if q.shape[0] > FEW * B:
        return f"{q.shape[0]} queries of {B} sequences are more than {FEW} each"
    if not block_table.shape[1]:
        return "the block table has no columns"
    if B > _MOST_GROUPS:
        return f"{B} sequences are more than {_MOST_GROUPS}"
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        if _row_stride(planes_of(x)[0].data) is None:
            return f"the positions of {name} are not evenly spaced rows"
        if x.nbytes > backend.caps.binding_bytes:
            return f"{name} has {x.nbytes} bytes, a binding at most {backend.caps.binding_bytes}"
    for name, x in (("alibi_slopes", alibi), ("sinks", sinks)):
        if x is not None and x.dtype != dtypes.float32:
            return f"{name} are {x.dtype}, not float32"
    return None


def _packed_refusal(backend: WgpuBackend, k_cache: KV, v_cache: KV) -> str | None:
    if backend.caps.bindings < _BINDINGS:
        return f"{_BINDINGS} arrays at once, the GPU binds {backend.caps.bindings}"
    D, Dv = k_cache.shape[3], v_cache.shape[3]
    if D % 8 or Dv % 8:
        return f"packed heads of {D} and {Dv} are not whole pieces of 8"
    return packed_refusal(k_cache, v_cache)


def _call(
    q: Tensor, k_cache: KV, v_cache: KV, block_table: Tensor, options: AttentionOptions,
    alibi: Any, sinks: Any,
) -> Call:  # fmt: skip
    backend: WgpuBackend = q.backend  # type: ignore[assignment]
    k, v = (planes_of(cache)[0].data for cache in (k_cache, v_cache))
    (T, H, D), (_, bs, K, Dv), (B, columns) = q.shape, v_cache.shape, block_table.shape
    packed = isinstance(k_cache, PackedKV)
    aligned = packed or (D % 8 == 0 and _aligned(backend, k, 8) and _aligned(backend, v, 8))
    shift = bs.bit_length() - 1 if bs & (bs - 1) == 0 else -1
    return Call(
        name_of(q.dtype), name_of(k.dtype), T, H, K, D, Dv, B,
        _capacity(block_table, bs, T, options), -2 if columns == 1 else shift,
        aligned, options.softcap > 0, alibi is not None, sinks is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class _Inputs:
    """Arrays of a call, as the kernel takes them."""

    q: Any
    k: Any
    v: Any
    cu: Any
    table: Any
    lens: Any
    alibi: Any
    scales: tuple[Any, ...]  # of k and v that are packed

    def reads(self) -> list[Any]:
        arrays = self.q, self.k, self.v, self.cu, self.table, self.lens, self.alibi, *self.scales
        return [a for a in arrays if a is not None]


def _inputs(backend: WgpuBackend, tensors: tuple, alibi: Tensor | None, aligned: bool) -> _Inputs:
    q, kept = tensors[0].data, [planes_of(cache) for cache in tensors[1:3]]
    (k, v), scales = (p[0].data for p in kept), tuple(p[1].data for p in kept if len(p) > 1)
    if q.strides[2] != 1 or (aligned and not _aligned(backend, q, 4)):
        q = backend.copy(q)
    cu, table, lens = (backend.dense(x.data) for x in tensors[3:])
    slopes = None if alibi is None else backend.dense(alibi.data)
    return _Inputs(q, k, v, cu, table, lens, slopes, scales)


def _launch(
    backend: WgpuBackend, call: Call, plan: Plan, x: _Inputs, options: AttentionOptions,
    writes: list[Any], finish: bool,
) -> None:  # fmt: skip
    bs, columns = x.k.shape[1], x.table.shape[1]
    unit = {"i8": 8, "u8": 4}.get(call.cache, 8 if call.aligned else 1)
    right = 0 if options.causal else options.right
    sides = (n if 0 <= n < _FAR else _FAR for n in (options.left, right))
    places = [backend.offset(x.q), *x.q.strides[:2]]
    for cache in (x.k, x.v):
        numbers = (backend.offset(cache), _row_stride(cache) or 0, cache.strides[2])
        places += [n // unit for n in numbers]
    arrays = (x.cu, x.lens, x.table, x.alibi)
    firsts = [0 if a is None else backend.offset(a) for a in arrays]
    firsts += [backend.offset(a) * a.dtype.itemsize // 4 for a in x.scales]
    params = [
        *places, *firsts, call.T, call.K, call.B, plan.splits, plan.tiles, bs, columns,
        min(columns * bs, _FAR), plan.grain, *sides, int(options.bottom_right),
        float(options.scale), float(options.softcap),
    ]  # fmt: skip
    backend.launch(
        _FAMILY, "attention_partials", (call.K * plan.tiles, plan.splits, call.B), x.reads(),
        writes, params, **plan.values(call, finish),
    )  # fmt: skip


# -- the parts, for who joins them; and the op ----------------------------------------------------
def partials(
    backend: WgpuBackend, q: Tensor, k_cache: KV, v_cache: KV, cu_seqlens_q: Tensor,
    block_table: Tensor, kv_lens: Tensor, alibi: Tensor | None, options: AttentionOptions, *,
    max_splits: int = 1 << 20, **chosen: Any,
) -> tuple[Any, int]:  # fmt: skip
    """Sums over the keys of each of S splits, as attention_decode_parts.wgsl reads them.

    Returns:
        partials f32 [T, H, S, round_up(Dv, 4) + 4]; S, at most `max_splits`.
    """
    tensors = (q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens)
    call = _call(q, k_cache, v_cache, block_table, options, alibi, None)
    planned = plan(call, backend.caps, max_splits, **chosen)
    return _partials(backend, call, planned, tensors, alibi, options), planned.splits


def _partials(backend, call, planned, tensors, alibi, options) -> Any:
    width = -(-call.Dv // 4) * 4 + 4
    made = backend.empty((call.T, call.H, planned.splits, width), dtypes.float32)
    if made.size:
        x = _inputs(backend, tensors, alibi, call.aligned)
        _launch(backend, call, planned, x, options, [made], False)
    return made


def left_to_reader(
    q: Tensor, k_cache: KV, v_cache: KV, block_table: Tensor, options: AttentionOptions,
    alibi: Tensor | None,
) -> int:  # fmt: skip
    """The splits that `partials` should leave to the reader; 0 if `attend` had better do it all."""
    backend: WgpuBackend = q.backend  # type: ignore[assignment]
    T, H, _ = q.shape
    # a row of the product reads all heads of a token; 8 rows are read together
    most = min(8, _IN_READER // (min(max(T, 1), 8) * H * (v_cache.shape[3] + 4) * 4))
    call = _call(q, k_cache, v_cache, block_table, options, alibi, None)
    splits = plan(call, backend.caps, max(most, 1)).splits
    codes = planes_of(k_cache)[0]
    nbytes = call.capacity * (call.D + call.Dv) * codes.nbytes // max(1, math.prod(k_cache.shape))
    least = 2 if alibi is None else 1  # `attend` does one split in one kernel, but not with ALiBi
    return splits if least <= splits <= most and nbytes <= splits * _OF_SPLIT else 0


def attend(
    q: Tensor, k_cache: KV, v_cache: KV, cu_seqlens_q: Tensor, block_table: Tensor,
    kv_lens: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: AttentionOptions,
    **chosen: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op `paged_attention`. `chosen`: fields of the plan; joined=False: two kernels always."""
    backend: WgpuBackend = q.backend  # type: ignore[assignment]
    joined = chosen.pop("joined", True)
    tensors = (q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens)
    call = _call(q, k_cache, v_cache, block_table, options, alibi, sinks)
    planned = plan(call, backend.caps, **chosen)
    # more bindings than every device has, words that are not whole
    apart = call.alibi or call.sinks or call.Dv % 4
    if planned.splits > 1 or apart or not joined:
        parts = _partials(backend, call, planned, tensors, alibi, options)
        logits = None if sinks is None else backend.dense(sinks.data)
        cu = backend.dense(cu_seqlens_q.data)
        out, lse = combine(backend, parts, call.Dv, logits, cu, q.dtype)
    else:
        out = backend.empty((call.T, call.H, call.Dv), q.dtype)
        lse = backend.empty((call.T, call.H), dtypes.float32)
        if out.size:
            x = _inputs(backend, tensors, alibi, call.aligned)
            _launch(backend, call, planned, x, options, [out, lse], True)
    return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)


def _variant(
    q: str, cache: str, H: int, D: int, finish: bool = True, subgroups: bool = False,
    small: bool = False, **rest: Any,
) -> Variant:  # fmt: skip
    """The class of calls with 4 kv heads, on a device as little as WebGPU promises, or a GPU."""
    caps = Caps("", "", "", kind="software" if small else "discrete")
    if subgroups:
        caps = replace(caps, subgroup_min=4 if small else 32, subgroup_max=32)
    known = {"Dv": D, "B": 1, "capacity": 4096, "shift": -2, "aligned": True, **rest}
    call = Call(q, cache, 1, H, 4, D, **known)
    values = plan(call, caps).values(call, finish)
    return Variant(_FAMILY, values, ("subgroup_max",) if subgroups else ())


VARIANTS = [
    *(_variant("bf16", "bf16", 16, D, False, True) for D in (64, 80, 128, 256)),
    _variant("bf16", "bf16", 12, 64, True, True),
    _variant("f32", "f32", 16, 64, False, True, small=True),
    _variant("f16", "f16", 16, 96, False, True, softcap=True, alibi=True, shift=4),
    _variant("f32", "f32", 32, 128, True, True),
    _variant("bf16", "bf16", 4, 256, True, shift=-1),
    _variant("f32", "bf16", 16, 64, False, small=True),
    _variant("bf16", "i8", 16, 80, False, True),
    _variant("bf16", "u8", 16, 64, True, True, shift=4),
    _variant("f32", "u8", 16, 128, False, alibi=True, small=True),
    _variant("f32", "f32", 8, 1, False, aligned=False, softcap=True, alibi=True),
    _variant("f16", "f16", 8, 20, True, Dv=12, aligned=False, small=True),
]
