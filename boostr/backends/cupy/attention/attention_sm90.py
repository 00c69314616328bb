"""Attention forward on Hopper: tensor maps, tile sizes and launches of `attention_sm90.cu`.

`attention.py` asks `supports` / `paged_supports` first and serves the rest with mma.sync.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.backends.cupy.runtime.tensor_map import mappable, tensor_map
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

FAMILY = "attention_sm90"
_FAR = 1 << 30  # a window side without end
_DTYPES = (dtypes.float16, dtypes.bfloat16)
_FLAGS = ("RIGHT", "LEFT", "PAGED", "SOFTCAP", "ALIBI", "SINKS")
_MOST_ROWS = 192  # of queries in a work item
PAGE_TILE = 128  # keys of a tile of a paged cache
_ALIGN = 1024 + 256  # of the tiles; barriers


# -- tiles ---------------------------------------------------------------------------------------
def tiles(D: int, flags: Mapping[str, Any], few: bool) -> dict[str, int]:
    """TILE_N, CONSUMERS, STAGES, Q_BUFFERS and PINGPONG, as measured best on an H100.

    Args:
        flags: macros of the options; softcap, ALiBi and a paged cache take registers.
        few: the work items do not fill the multiprocessors, so they should be small.
    """
    plain = not (flags["PAGED"] or flags["SOFTCAP"] or flags["ALIBI"])
    if D == 64:
        consumers, tile_n, stages, turns = (3 if plain and not few else 2), 128, 4, 1
    elif plain and not few and not flags["LEFT"]:
        consumers, tile_n, stages, turns = 3, 80, 3, 0
    else:
        consumers, tile_n, stages, turns = 2, 128, 2, 1
    return {
        "TILE_N": tile_n, "CONSUMERS": consumers, "STAGES": stages, "Q_BUFFERS": 2,
        "PINGPONG": turns,
    }  # fmt: skip


def flags_of(options: Any, alibi: Any, sinks: Any, paged: bool) -> dict[str, int]:
    """The macros of a call's options."""
    return {
        "RIGHT": int(_right(options) >= 0), "LEFT": int(options.left >= 0 or paged),
        "PAGED": int(paged), "SOFTCAP": int(options.softcap > 0), "ALIBI": int(alibi is not None),
        "SINKS": int(sinks is not None),
    }  # fmt: skip


def shared_bytes(D: int, tile: dict[str, int]) -> int:
    """Shared memory of one block: tiles of q, STAGES tiles of k and of v, barriers."""
    rows = 64 * tile["CONSUMERS"] * tile["Q_BUFFERS"] + 2 * tile["STAGES"] * tile["TILE_N"]
    return rows * D * 2 + _ALIGN


def variant(
    dtype: str, D: int, flags: Mapping[str, Any], tile: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """All macros of a specialisation. A flag that is not given is off."""
    flags = {name: int(flags.get(name, False)) for name in _FLAGS}
    return {"DTYPE": dtype, "HEAD_DIM": D, **(tile or tiles(D, flags, False)), **flags}


_CAUSAL, _WINDOW = {"RIGHT": 1}, {"RIGHT": 1, "LEFT": 1}
_GENERAL = {"RIGHT": 1, "LEFT": 1, "PAGED": 1, "SOFTCAP": 1, "ALIBI": 1, "SINKS": 1}
VARIANTS = [
    Variant(FAMILY, variant(dtype, D, flags), least=90, only="sm_90a")
    for dtype, D, flags in (
        ("bf16", 64, {}), ("bf16", 64, _CAUSAL), ("bf16", 64, _WINDOW), ("bf16", 64, _GENERAL),
        ("bf16", 128, {}), ("bf16", 128, _CAUSAL), ("bf16", 128, _WINDOW),
        ("bf16", 128, _GENERAL), ("f16", 64, _CAUSAL), ("f16", 128, _CAUSAL),
    )
]  # fmt: skip


# -- what it can do ------------------------------------------------------------------------------
def supports(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, sinks, options) -> str | None:
    """None, or why this kernel cannot serve the arguments of op "varlen_attention"."""
    return _refusal(q, k, v, options)


def paged_supports(
    q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, sinks, options
) -> str | None:
    """None, or why this kernel cannot serve the arguments of op "paged_attention"."""
    bs, columns = k_cache.shape[1], block_table.shape[1]
    if bs % PAGE_TILE and (columns > 1 or options.left >= 0):
        return f"a block of {bs} keys does not hold whole tiles of {PAGE_TILE}"
    if not (mappable(k_cache.data) and mappable(v_cache.data)):
        return "the cache's rows are not 16-byte aligned"
    return _refusal(q, k_cache, v_cache, options)


def _refusal(q, k, v, options) -> str | None:
    if q.backend.caps.compute_capability != 90:
        return f"compute capability {q.backend.caps.compute_capability} is not 90"
    if q.dtype not in _DTYPES or k.dtype != q.dtype:
        return f"q {q.dtype} and k, v {k.dtype} are not both float16 or bfloat16"
    D, Dv = q.shape[-1], v.shape[-1]
    if Dv != D or D not in (64, 128):
        return f"head_dim {D}, {Dv} not in 64, 128"
    if options.scale <= 0:
        return f"scale {options.scale} is not positive"
    if not q.size or not k.size:
        return "nothing to attend"
    return None


# -- launches ------------------------------------------------------------------------------------
def run(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, sinks, options) -> tuple[Tensor, Tensor]:
    """Op "varlen_attention"."""
    return _attend(q, k, v, cu_seqlens_q, cu_seqlens_k, None, alibi, sinks, options)


def paged_run(
    q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, sinks, options
) -> tuple[Tensor, Tensor]:
    """Op "paged_attention"."""
    table = block_table.backend.dense(block_table.data)
    return _attend(q, k_cache, v_cache, cu_seqlens_q, kv_lens, table, alibi, sinks, options)


def _attend(
    q, k, v, cu_seqlens_q, kv, table, alibi, sinks, options, tile=None
) -> tuple[Tensor, Tensor]:
    """Plan and attend. kv: cu_seqlens_k [B+1], or kv_lens [B] with a block table."""
    backend: CupyBackend = q.backend  # type: ignore[assignment]
    Tq, H, D = q.shape
    K, B = k.shape[-2], cu_seqlens_q.size - 1
    flags = flags_of(options, alibi, sinks, table is not None)
    few = _most_items(Tq, H, B, _MOST_ROWS) < 2 * backend.caps.sms
    defines = variant(backend.c_type(q.dtype), D, flags, tile or tiles(D, flags, few))
    rows, threads = 64 * defines["CONSUMERS"], 128 * (defines["CONSUMERS"] + 1)
    read = [mappable_rows(backend, x.data) for x in (q, k, v)]  # kept until the launch
    boxes = rows, defines["TILE_N"], defines["TILE_N"]
    maps = [tensor_map(x, (box, 1, 64)) for x, box in zip(read, boxes, strict=True)]
    cu_q, kv = backend.dense(cu_seqlens_q.data), backend.dense(kv.data)
    out = backend.empty((Tq, H, D), q.dtype)
    lse = backend.empty((Tq, H), np.float32)
    plan = backend.empty((4 + 4 * B,), np.int32)
    backend.launch(
        FAMILY, "attention_plan", (17,), (1024,),
        (plan, cu_q, kv, out, lse, B, Tq, H, K, backend.caps.l2_bytes // 2), **defines,
    )  # fmt: skip
    columns, bs = (table.shape[1], k.shape[1]) if table is not None else (1, 1)
    alibi, sinks = dense_float32(backend, alibi), dense_float32(backend, sinks)
    blocks = min(backend.caps.sms, _most_items(Tq, H, B, rows))
    backend.launch(
        FAMILY, "attention_sm90", (blocks,), (threads,),
        (*maps, out, lse, plan, cu_q, kv, table, alibi, sinks, B, H, K, columns, bs,
         *mask_and_scales(options)),
        shared_bytes=shared_bytes(D, defines), dependent=True, **defines,
    )  # fmt: skip
    return Tensor.wrap(out, backend), Tensor.wrap(lse, backend)


def _most_items(Tq: int, H: int, B: int, rows: int) -> int:
    """No fewer than the work items of any cu_seqlens over Tq tokens."""
    return H * min(Tq, Tq // rows + B)


def mappable_rows(backend: CupyBackend, x: Any) -> Any:
    """x as [tokens, heads, D] that a tensor map can read; a cache's blocks lie end to end."""
    if x.ndim == 4:
        x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return x if mappable(x) else backend.copy(x)


def mask_and_scales(options: Any) -> tuple[int | float, ...]:
    """The end of the kernels' arguments: what a query sees, and how scores are scaled."""
    left, right = (
        _FAR if side < 0 else min(side, _FAR) for side in (options.left, _right(options))
    )
    return left, right, int(options.bottom_right), float(options.scale), float(options.softcap)


def _right(options: Any) -> int:
    """How far a query sees to its right; negative is without end."""
    return 0 if options.causal else options.right


def dense_float32(backend: CupyBackend, x: Tensor | None) -> Any:
    """Its array as kernels read it, or None."""
    return None if x is None else backend.dense(backend.cast(x.data, np.dtype(np.float32)))
