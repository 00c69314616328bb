"""Attention of few queries per sequence over a paged cache: partials over the keys, then combined.

The grid depends on shapes alone: lengths are read on the device, which divides the keys that are
there evenly over the blocks (`shaders/cuda/attention/attention_decode.cu`). So a captured step
serves every length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.attention.attention_combine import combine
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.operands import KV, planes_of
from boostr.options import AttentionOptions
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

FEW = 8  # queries per sequence, on average, up to which this is the way
MAX_DIM = 256
_FAMILY = "attention_decode"
_FAR = 1 << 29  # a window side beyond every position
_MOST_ROWS = 1 << 16  # T * H that the counters are for
_SHORT = 2048  # positions of a cache up to which a step is more than its attention


# -- what a call needs ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Call:
    """Shapes and types of one call, from which the launch follows."""

    q_dtype: np.dtype
    cache_dtype: np.dtype  # int8: packed
    T: int
    H: int
    K: int
    D: int
    Dv: int
    B: int
    capacity: int  # keys that one query can see at most
    aligned: bool  # all rows begin at multiples of 16 bytes
    softcap: bool = False
    alibi: bool = False

    @property
    def packed(self) -> bool:
        return self.cache_dtype == dtypes.int8

    @property
    def queries(self) -> int:
        """Per sequence, on average, rounded up."""
        return -(-self.T // self.B)


@dataclass(frozen=True)
class Plan:
    """A specialisation of the kernel and its launch.

    Attributes:
        rows: (query, head) pairs of a block.   keys: of a unit, which one warp takes at a time.
        warps, stages, blocks: of a block; units in each warp's ring; blocks of a multiprocessor.
        grain: the fewest units that a group takes, a power of 2.
        alone: so many units of a single sequence are not divided, as joining takes longer.
        groups: of K blocks each, the grid's height.
        splits: S, the most groups that can share a sequence.
    """

    mma: bool
    rows: int
    keys: int
    warps: int
    stages: int
    blocks: int
    grain: int
    alone: int
    groups: int
    splits: int
    shared_bytes: int

    def defines(
        self, call: Call, c_type: Any, finish: bool, early: bool = False
    ) -> dict[str, int | str]:
        return {
            "Q_TYPE": c_type(call.q_dtype), "CACHE_TYPE": c_type(call.cache_dtype),
            "HEAD_DIM": call.D, "V_DIM": call.Dv, "MMA": int(self.mma), "ROWS": self.rows,
            "KEYS": self.keys, "N_WARPS": self.warps, "STAGES": self.stages,
            "BLOCKS": self.blocks, "VEC": int(call.aligned), "SOFTCAP": int(call.softcap),
            "ALIBI": int(call.alibi), "FINISH": int(finish), "EARLY": int(early),
            "PACKED": int(call.packed),
        }  # fmt: skip


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def _bytes(call: Call, mma: bool, rows: int, keys: int, warps: int) -> tuple[int, int, int]:
    """Shared memory: (of one stage of all warps, of merging, static)."""
    size = call.cache_dtype.itemsize
    piece = 16 // size
    k_width = _round_up(call.D, 16 if mma else 8 * piece)
    v_width = _round_up(call.Dv, 16 if mma else 32)
    stage = warps * keys * ((k_width + v_width + 2 * piece) * size + (8 if call.packed else 0))
    merge = warps * rows * (v_width + 8) * 4
    query = rows * (k_width + 8) * 2 if mma else (k_width + warps * keys) * rows * 4
    return stage, merge, query + rows * (36 + 8 * warps) + 512


def _tile(call: Call, compute_capability: int) -> tuple[bool, int, int]:
    """(tensor cores or not, rows of a block, keys of a unit)."""
    dim = max(call.D, call.Dv)
    wanted = call.H // call.K * call.queries
    if call.packed:
        mma = call.q_dtype == dtypes.bfloat16
    else:
        mma = call.aligned and call.q_dtype == call.cache_dtype != dtypes.float32
    if mma and compute_capability >= (80 if call.q_dtype == dtypes.bfloat16 else 75):
        most = 64 if call.packed else 128 if compute_capability in (80, 90) else 96  # registers
        return True, 32 if wanted > 16 and dim <= most else 16, 16
    most = 16 if dim <= 128 else 8
    rows = next(r for r in (1, 4, 8, most) if r >= min(wanted, most))
    wide = call.cache_dtype == dtypes.float32 and dim > 64
    return False, rows, 8 if wide or rows == 16 else 16


def _even(groups: int, B: int) -> int:
    """A few groups less, if then sequences of one length end where groups do."""
    even = groups // B * B if groups >= B else -(-B // -(-B // groups))
    return even if 16 * even >= 15 * groups else groups


@lru_cache(1024)
def plan(call: Call, compute_capability: int, sms: int, shared_bytes: int, **chosen: Any) -> Plan:
    """How to run a call. `chosen` overrides fields: benchmarks compare them."""
    dim = max(call.D, call.Dv)
    mma, rows, keys = _tile(call, compute_capability)
    rows, keys = chosen.get("rows", rows), chosen.get("keys", keys)
    # leaves room for the GEMVs before and after it, which counts while attention is short
    light = mma and (call.K > 4 or dim > 64) and call.capacity <= _SHORT
    many = call.B >= 8 and mma and dim <= 128  # then two blocks fill each other's gaps
    warps, blocks = chosen.get("warps", 4 if light or many else 8), chosen.get("blocks", 1 + many)
    stages = chosen.get("stages", 2 if compute_capability >= 80 else 1)
    stage, merge, static = _bytes(call, mma, rows, keys, warps)
    room = shared_bytes // blocks - 1024 - static
    while warps > 1 and room < max(stages * stage, merge):
        warps //= 2
        stage, merge, static = _bytes(call, mma, rows, keys, warps)
        room = shared_bytes // blocks - 1024 - static
    grain = chosen.get("grain", 4 if light and call.K > 4 else 8)
    units = (call.capacity - 1) // keys + 2  # of one sequence: it may begin within a unit
    most_units = units * (call.T * (call.H // call.K) // rows + call.B)
    groups = chosen.get("groups", _even(max(1, sms * blocks // call.K), call.B))
    if not light:  # else blocks that have nothing to do too: where only some multiprocessors hold
        groups = min(groups, max(1, most_units // grain))  # one, the next GEMV spreads unevenly
    splits = min(groups, (units - 2) // grain + 2)
    memory = max(stages * stage, merge)
    alone = chosen.get("alone", 2 * warps)
    return Plan(mma, rows, keys, warps, stages, blocks, grain, alone, groups, splits, memory)


# -- arrays ---------------------------------------------------------------------------------------
def _row_stride(cache: Any) -> int | None:
    """Bytes from one position's row to the next if they are evenly spaced over all blocks."""
    NB, bs = cache.shape[:2]
    if cache.size == 0:
        return 0
    stride = cache.strides[0] if bs == 1 else cache.strides[1]
    even = NB == 1 or bs == 1 or cache.strides[0] == bs * stride
    return stride if even and cache.strides[3] == cache.itemsize and 0 <= stride < 1 << 31 else None


def _aligned(x: Any) -> bool:
    """Whether every row of the last axis begins at a multiple of 16 bytes and ends at one."""
    return not any(n % 16 for n in (x.data.ptr, x.shape[-1] * x.itemsize, *x.strides[:-1]))


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
    B = kv_lens.size
    codes = planes_of(k_cache)[0].dtype
    if q.dtype not in dtypes.MODEL_FLOATS or codes not in (*dtypes.MODEL_FLOATS, dtypes.int8):
        return f"dtypes {q.dtype}, {codes}: it takes float32, float16, bfloat16 and int8 caches"
    if max(q.shape[2], v_cache.shape[3]) > MAX_DIM or not min(q.shape[2], v_cache.shape[3]):
        return f"head_dim {q.shape[2]}, {v_cache.shape[3]} is not in 1..{MAX_DIM}"
    if q.shape[0] > FEW * B:
        return f"{q.shape[0]} queries of {B} sequences are more than {FEW} each"
    if not block_table.shape[1]:
        return "the block table has no columns"
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        codes, *scales = (plane.data for plane in planes_of(x))
        if scales and not (_aligned(codes) and codes.flags.c_contiguous):
            return f"{name} is packed, and not dense or its heads are not whole pieces of 16"
        if _row_stride(codes) is None:
            return f"the positions of {name} are not evenly spaced rows"
    for name, x in (("alibi_slopes", alibi), ("sinks", sinks)):
        if x is not None and x.dtype != dtypes.float32:
            return f"{name} is {x.dtype}, not float32"
    rows = max(k_cache.shape[0] * k_cache.shape[1], block_table.shape[1] * k_cache.shape[1])
    return f"{rows} rows of the cache are more than {_FAR}" if rows > _FAR else None


# -- launches -------------------------------------------------------------------------------------
_counters: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def prepare(backend: CupyBackend) -> Any:
    """The counters of `attend`: zero between launches. Made on the first call."""
    found = _counters.get(backend)
    if found is None:
        found = _counters.setdefault(backend, backend.from_numpy(np.zeros(_MOST_ROWS, np.uint32)))
    return found


@dataclass(frozen=True)
class _Results:
    """Where a launch writes; sinks, out, lse and counters only where it joins the splits too."""

    partial_out: Any
    partial_ms: Any
    sinks: Any = None
    out: Any = None
    lse: Any = None
    counters: Any = None


def _call(q: Tensor, k: Any, v: Any, table: Any, options: AttentionOptions, alibi: Any) -> Call:
    T, H, D = q.shape
    aligned = _aligned(k) and _aligned(v) and D * q.dtype.itemsize % 16 == 0
    return Call(
        q.dtype, k.dtype, T, H, v.shape[2], D, v.shape[3], table.shape[0],
        _capacity(table, v.shape[1], T, options), aligned, options.softcap > 0, alibi is not None,
    )  # fmt: skip


def _arrays(q: Tensor, k_cache: KV, v_cache: KV, *lengths: Tensor) -> list[Any]:
    """q, keys, values, the scales of both or None, then cu_seqlens_q, block_table, kv_lens."""
    kept = [[plane.data for plane in planes_of(cache)] for cache in (k_cache, v_cache)]
    codes, scales = [p[0] for p in kept], [p[1] if len(p) > 1 else None for p in kept]
    return [q.data, *codes, *scales, *(x.data for x in lengths)]


def _launch(
    backend: CupyBackend, call: Call, plan: Plan, arrays: list[Any], alibi: Any,
    options: AttentionOptions, to: _Results, dependent: bool,
) -> None:  # fmt: skip
    """`arrays`: as `_arrays` gives them."""
    q, k, v, k_scales, v_scales, cu, table, lens = arrays
    if q.strides[2] != q.itemsize or (call.aligned and not _aligned(q)):
        q = backend.copy(q)
    bs, size, q_size = k.shape[1], k.itemsize, q.itemsize
    right = 0 if options.causal else options.right
    sides = (n if 0 <= n < _FAR else _FAR for n in (options.left, right))
    args = (
        q, k, v, k_scales, v_scales, *map(backend.dense, (cu, table, lens)), alibi,
        to.partial_out, to.partial_ms,
        to.sinks, to.out, to.lse, to.counters, *(np.int64(n // q_size) for n in q.strides[:2]),
        *(np.int64(x.strides[2] // size) for x in (k, v)),
        *(_row_stride(x) or 0 for x in (k, v)), call.T, call.H, call.H // call.K, call.B,
        bs, bs.bit_length() - 1 if bs & (bs - 1) == 0 else -1, table.shape[1],
        table.shape[1] * bs, plan.splits, plan.grain.bit_length() - 1,
        plan.alone if to.out is not None else 0, *sides,
        -int(options.bottom_right), float(options.scale), float(options.softcap),
    )  # fmt: skip
    backend.launch(
        _FAMILY, "attention_partials", (call.K, plan.groups), (32 * plan.warps,), args,
        shared_bytes=plan.shared_bytes, dependent=dependent,
        **plan.defines(call, backend.c_type, to.out is not None, dependent and backend.early),
    )  # fmt: skip


def partials(
    backend: CupyBackend, q: Tensor, k_cache: KV, v_cache: KV, cu_seqlens_q: Tensor,
    block_table: Tensor, kv_lens: Tensor, alibi: Tensor | None, options: AttentionOptions, *,
    dependent: bool = True, **chosen: Any,
) -> tuple[Any, Any, int]:  # fmt: skip
    """Sums over the keys that each of S splits took.

    Args:
        dependent: the kernel may start before the one before it has ended, and then waits.
    Returns:
        partial_out f32 [T, H, S, Dv], the sums of exp(score - m) v; partial_ms f32 [T, H, S, 2],
        m (natural log units) and the sum of exp(score - m); S. A split that got no keys has
        (-inf, 0) in partial_ms and nothing of meaning in partial_out: skip it. Sinks are the
        combiner's affair.
    """
    arrays = _arrays(q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens)
    call = _call(q, arrays[1], arrays[2], arrays[6], options, alibi)
    planned = plan(call, *_limits(backend), **chosen)
    shape = (call.T, call.H, planned.splits)
    to = _Results(backend.empty((*shape, call.Dv)), backend.empty((*shape, 2)))
    slopes = None if alibi is None else backend.dense(alibi.data)
    if to.partial_out.size:
        _launch(backend, call, planned, arrays, slopes, options, to, dependent)
    return to.partial_out, to.partial_ms, planned.splits


def attend(
    q: Tensor, k_cache: KV, v_cache: KV, cu_seqlens_q: Tensor, block_table: Tensor,
    kv_lens: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: AttentionOptions, *,
    dependent: bool = True, joined: bool = True, **chosen: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op `paged_attention` for the arguments that `supports` lets through.

    `joined`: one kernel does all, and not `partials` and `combine`.
    """
    backend: CupyBackend = q.backend  # type: ignore[assignment]
    logits = None if sinks is None else backend.dense(sinks.data)
    if not joined or q.shape[0] * q.shape[1] > _MOST_ROWS:
        parts = partials(
            backend, q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, options,
            dependent=dependent, **chosen,
        )  # fmt: skip
        made = combine(backend, *parts[:2], logits, backend.dense(cu_seqlens_q.data), q.dtype)
        return Tensor.wrap(made[0], backend), Tensor.wrap(made[1], backend)
    arrays = _arrays(q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens)
    call = _call(q, arrays[1], arrays[2], arrays[6], options, alibi)
    planned = plan(call, *_limits(backend), **chosen)
    rows, S = (call.T, call.H), planned.splits
    to = _Results(
        backend.empty((*rows, S, call.Dv)), backend.empty((*rows, S, 2)), logits,
        backend.empty((*rows, call.Dv), q.dtype), backend.empty(rows), prepare(backend),
    )  # fmt: skip
    slopes = None if alibi is None else backend.dense(alibi.data)
    if to.out.size:
        _launch(backend, call, planned, arrays, slopes, options, to, dependent)
    return Tensor.wrap(to.out, backend), Tensor.wrap(to.lse, backend)


def _limits(backend: CupyBackend) -> tuple[int, int, int]:
    caps = backend.caps
    return caps.compute_capability, caps.sms, caps.shared_bytes


# -- for the compile gate -------------------------------------------------------------------------
_NAMES = {
    dtypes.float32: "float", dtypes.float16: "f16", dtypes.bfloat16: "bf16", dtypes.int8: "i8",
}  # fmt: skip


def _variant(
    q: np.dtype, cache: np.dtype, H: int, D: int, finish: bool = True, early: bool = False,
    **rest: Any,
) -> Variant:  # fmt: skip
    """The class of calls with 4 kv heads, as an sm_80 takes it (an sm_75 for `least` 75)."""
    call = Call(q, cache, 1, H, 4, D, D, 1, 4096, **{"aligned": True, **rest})
    least = 80 if dtypes.bfloat16 in (q, cache) else 75
    made = plan(call, least, 108, 166912 if least == 80 else 65536)
    return Variant(_FAMILY, made.defines(call, _NAMES.__getitem__, finish, early), least=least)


_F32, _F16, _BF16, _INT8 = dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.int8
VARIANTS = [
    *(_variant(_BF16, _BF16, 16, D, early=D < 256) for D in (64, 80, 128, 256)),
    _variant(_BF16, _BF16, 16, 96, softcap=True, alibi=True),
    _variant(_BF16, _BF16, 16, 64, finish=False),
    _variant(_F16, _F16, 128, 64),
    _variant(_F32, _F32, 4, 64),
    _variant(_F32, _F32, 4, 64, early=True),
    _variant(_F32, _F32, 16, 128, finish=False),
    *(_variant(_F32, _F32, 64, D) for D in (128, 256)),
    _variant(_F32, _BF16, 16, 128),
    *(_variant(_BF16, _INT8, 16, D, early=D < 256) for D in (64, 80, 128, 256)),
    _variant(_BF16, _INT8, 128, 96, softcap=True, alibi=True),
    _variant(_F16, _INT8, 16, 64),
    _variant(_F32, _INT8, 32, 128, finish=False),
    _variant(_F32, _F32, 8, 1, aligned=False, softcap=True, alibi=True),
]
