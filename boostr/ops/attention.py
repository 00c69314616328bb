"""Attention over packed sequences of different lengths, from contiguous keys or from a paged cache.

One mathematical core serves both: every query and key has a segment and a position, and a query
sees the keys of its segment that the mask on positions lets through. The composite works on blocks
of queries, so that its memory is block · T, never T · T; kernels keep less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from boostr import dtypes
from boostr.dispatch import Op, common_backend
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.operands import KV, PackedKV, planes_of
from boostr.ops import core
from boostr.ops.cache import unpacked_rows
from boostr.ops.norm import wide
from boostr.options import AttentionOptions, attention_options
from boostr.tensor import Tensor, arange, full

_BLOCK = 256  # queries at a time in the composite


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    distance_bias: Tensor | None = None,
    causal_alignment: str = "bottom-right",
) -> tuple[Tensor, Tensor]:
    """out[i] = softmax(score(q[i], k)) v within each segment cu_seqlens[b] : cu_seqlens[b+1].

    score = softcap · tanh(scale · q·k / softcap) - slope · |position_q - position_k|
            + distance_bias[M + clip(position_k - position_q, -M, M)], masked.

    Args:
        q: [Tq, H, D] float.   k: [Tk, K, D].   v: [Tk, K, Dv]; H divisible by K, head h reads kv
            head h // (H/K).
        cu_seqlens_q, cu_seqlens_k: int32 [B+1], non-decreasing from 0 to Tq / Tk.
        causal: a query sees no key after its own position.
        window: (left, right): how many keys before and after its position it sees; None or -1: all.
        scale: default D**-0.5.   softcap: None or 0: none.   alibi_slopes, sinks: float32 [H]; a
            sink is one more logit that takes probability and has no value.
        distance_bias: float [H, 2M+1] by how far a key lies from the query (MPNet, T5).
        causal_alignment: where query i of a segment stands: "bottom-right" at i + len_k - len_q
            (chunked prefill, prefix hits), "top-left" at i.
    Returns:
        out [Tq, H, Dv] in q's dtype and lse float32 [Tq, H] (float64 for float64 q), the log of the
        softmax's normaliser. A query that sees no key gives 0 and lse -inf (with sinks: lse =
        sink).
    Gradient: q, k, v, sinks and distance_bias.
    Source: Dao 2023, FlashAttention-2; ALiBi: Press et al. 2021; sinks: gpt-oss.
    """
    op = "varlen_attention"
    _check_heads(op, q, k, v, 3)
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        _check_int(op, name, cu, 1)
    if cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.size < 2:
        raise ShapeError(
            f"{op}: cu_seqlens must both be [B+1], got {list(cu_seqlens_q.shape)} "
            f"and {list(cu_seqlens_k.shape)}"
        )
    options = attention_options(op, q.shape[2], causal, window, scale, softcap, causal_alignment)
    _check_per_head(op, q, alibi_slopes, sinks)
    places = (cu_seqlens_q, cu_seqlens_k)
    if distance_bias is None:
        return _varlen(q, k, v, *places, alibi_slopes, sinks, options)
    _check_distance_bias(op, q, distance_bias)
    return _biased(q, k, v, *places, alibi_slopes, sinks, options, distance_bias)


def paged_attention(
    q: Tensor,
    k_cache: KV,
    v_cache: KV,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    kv_lens: Tensor,
    *,
    causal: bool = True,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    causal_alignment: str = "bottom-right",
) -> tuple[Tensor, Tensor]:
    """`varlen_attention` whose keys and values are in the blocks of a cache.

    Position p of sequence b is at block_table[b, (p // bs) % max_blocks], offset p % bs. The table
    wraps, so a ring of blocks is a sliding-window cache; the window must then hide overwritten
    keys.

    Args:
        q: [Tq, H, D].   k_cache, v_cache: [NB, bs, K, D], floats or packed, alike.
        cu_seqlens_q: int32 [B+1].
        block_table: int32 [B, max_blocks].   kv_lens: int32 [B], keys of each sequence, the new
            ones included.   The options are those of `varlen_attention`.
    Returns:
        out [Tq, H, Dv] in q's dtype and lse float32 [Tq, H].
    Gradient: as that of its primitives; training uses `varlen_attention`.
    """
    op = "paged_attention"
    _check_heads(op, q, k_cache, v_cache, 4)
    _check_int(op, "cu_seqlens_q", cu_seqlens_q, 1)
    _check_int(op, "block_table", block_table, 2)
    _check_int(op, "kv_lens", kv_lens, 1)
    B = cu_seqlens_q.size - 1
    if B < 1:
        raise ShapeError(f"{op}: cu_seqlens_q must be [B+1], got {list(cu_seqlens_q.shape)}")
    if block_table.shape[0] != B or kv_lens.size != B:
        raise ShapeError(
            f"{op}: block_table and kv_lens must have B = {B} rows, "
            f"got {list(block_table.shape)} and {list(kv_lens.shape)}"
        )
    options = attention_options(op, q.shape[2], causal, window, scale, softcap, causal_alignment)
    _check_per_head(op, q, alibi_slopes, sinks)
    return _paged(
        q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi_slopes, sinks, options
    )


# -- validation ----------------------------------------------------------------------------------
def _check_heads(op: str, q: Tensor, k: KV, v: KV, ndim: int) -> None:
    common_backend(op, [q, *planes_of(k), *planes_of(v)])
    if q.ndim != 3 or len(k.shape) != ndim or len(v.shape) != ndim or k.shape[:-1] != v.shape[:-1]:
        rest = "[Tk, K, D]" if ndim == 3 else "[NB, bs, K, D]"
        raise ShapeError(
            f"{op}: expected q [Tq, H, D] and k, v {rest}, got {list(q.shape)}, {list(k.shape)}, "
            f"{list(v.shape)}"
        )
    if q.shape[2] != k.shape[-1]:
        raise ShapeError(f"{op}: q and k must share D, got {q.shape[2]} and {k.shape[-1]}")
    H, K = q.shape[1], k.shape[-2]
    if K == 0 or H % K:
        raise ShapeError(f"{op}: H must be divisible by K, got H = {H}, K = {K}")
    packed = isinstance(k, PackedKV)
    kinds: list = [x.form.name if isinstance(x, PackedKV) else x.dtype for x in (k, v)]
    alike = packed == isinstance(v, PackedKV) and kinds[0] == kinds[1]
    if not alike or not all(dtypes.is_float(d) for d in (q.dtype, *([] if packed else kinds))):
        raise DTypeError(
            f"{op}: expected float q and k, v of one float dtype, "
            f"got {q.dtype}, {kinds[0]}, {kinds[1]}"
        )


def _check_int(op: str, name: str, x: Tensor, ndim: int) -> None:
    if x.dtype != dtypes.int32 or x.ndim != ndim:
        raise DTypeError(
            f"{op}: {name} must be int32 with {ndim} axes, got {x.dtype}{list(x.shape)}"
        )


def _check_per_head(op: str, q: Tensor, alibi_slopes: Tensor | None, sinks: Tensor | None) -> None:
    for name, x in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if x is not None and x.shape != q.shape[1:2]:
            raise ShapeError(f"{op}: {name} must be [H] = [{q.shape[1]}], got {list(x.shape)}")
    if alibi_slopes is not None and alibi_slopes.requires_grad:
        raise OptionError(f"{op}: alibi_slopes are constants and have no gradient")


def _check_distance_bias(op: str, q: Tensor, bias: Tensor) -> None:
    common_backend(op, [q, bias])
    if not dtypes.is_float(bias.dtype):
        raise DTypeError(f"{op}: distance_bias must be float, got {bias.dtype}")
    if bias.ndim != 2 or bias.shape[0] != q.shape[1] or bias.shape[1] % 2 == 0:
        raise ShapeError(
            f"{op}: distance_bias must be [H, 2M+1] with H = {q.shape[1]}, got {list(bias.shape)}"
        )


# -- where queries and keys stand ----------------------------------------------------------------
@dataclass(frozen=True)
class _Places:
    """Segment and position of tokens, int32 [T]; a token outside of all has segment -1."""

    segment: Tensor
    position: Tensor


def _segments(cu_seqlens: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """(segment of each token, its index within the segment)."""
    index = arange(T, backend=cu_seqlens.backend)
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    inside = core.cast(index.unsqueeze(1) >= ends, dtypes.int32)
    segment = core.minimum(core.sum(inside, 1), len(starts) - 1)
    offset = index - core.take(starts, segment)
    return core.where(index < cu_seqlens[-1:], segment, -1), offset


def _query_places(cu_seqlens_q: Tensor, kv_lens: Tensor, T: int, options: AttentionOptions):
    segment, position = _segments(cu_seqlens_q, T)
    if options.bottom_right:
        shift = kv_lens - (cu_seqlens_q[1:] - cu_seqlens_q[:-1])
        position = position + core.take(shift, core.maximum(segment, 0))
    return _Places(segment, position)


def _varlen_places(q, k, cu_seqlens_q, cu_seqlens_k, options) -> tuple[_Places, _Places]:
    kv_lens = cu_seqlens_k[1:] - cu_seqlens_k[:-1]
    queries = _query_places(cu_seqlens_q, kv_lens, len(q), options)
    return queries, _Places(*_segments(cu_seqlens_k, len(k)))


def _visible(queries: _Places, keys: _Places, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """(mask bool [Tq, Tk], distance int32 [Tq, Tk] = key's position minus query's)."""
    seen = core.eq(queries.segment.unsqueeze(1), keys.segment) & (keys.segment >= 0)
    distance = keys.position - queries.position.unsqueeze(1)
    if options.right >= 0:
        seen = seen & (distance <= options.right)
    if options.causal:
        seen = seen & (distance <= 0)
    if options.left >= 0:
        seen = seen & (distance >= -options.left)
    return seen, distance


# -- the core, on one block of queries -----------------------------------------------------------
def _scores(
    q, k, seen, distance, alibi, options: AttentionOptions, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Masked scores [K, G, Tq, Tk] and, under a softcap, d(score)/d(scale·q·k)."""
    Tq, H, D = q.shape
    Tk, K, _ = k.shape
    heads = wide(q).reshape(Tq, K, H // K, D).permute(1, 2, 0, 3).reshape(K, H // K * Tq, D)
    s = (heads @ wide(k).permute(1, 2, 0)).reshape(K, H // K, Tq, Tk) * options.scale
    slack = None
    if options.softcap:
        t = core.tanh(s * (1 / options.softcap))
        s, slack = t * options.softcap, 1 - t * t
    if alibi is not None:
        away = core.cast(core.abs(distance), s.dtype)
        s = s - core.cast(alibi, s.dtype).reshape(K, H // K, 1, 1) * away
    if bias is not None:
        M = bias.shape[1] // 2
        column = core.minimum(core.maximum(distance, -M), M) + M
        by_pair = core.take(bias, column.flatten(), 1).reshape(K, H // K, Tq, Tk)
        s = s + core.cast(by_pair, s.dtype)
    return core.where(seen, s, -math.inf), slack


def _softmax(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """(probabilities, lse [K, G, Tq]) of scores; rows without keys get zeros and -inf."""
    K, G, Tq, _ = s.shape
    top = core.max(s, -1, keepdims=True) if s.shape[-1] else s.full_like(0).sum(-1, True) - math.inf
    if sinks is not None:
        sink = core.cast(sinks, s.dtype).reshape(K, G, 1, 1)
        top = core.maximum(top, sink)
    safe = core.where(top > -math.inf, top, 0.0)
    weights = core.exp(s - safe)
    total = core.sum(weights, -1, keepdims=True)
    if sinks is not None:
        total = total + core.exp(sink - safe)
    lse = core.where(total > 0, core.log(core.where(total > 0, total, 1.0)) + safe, -math.inf)
    return weights / core.where(total > 0, total, 1.0), lse.reshape(K, G, Tq)


def _attend_block(q, k, v, queries, keys, alibi, sinks, options, bias) -> tuple[Tensor, Tensor]:
    Tq, H, _ = q.shape
    Tk, K, Dv = v.shape
    seen, distance = _visible(queries, keys, options)
    s, _ = _scores(q, k, seen, distance, alibi, options, bias)
    p, lse = _softmax(s, sinks)
    out = p.reshape(K, H // K * Tq, Tk) @ wide(v).permute(1, 0, 2)
    out = out.reshape(K, H // K, Tq, Dv).permute(2, 0, 1, 3).reshape(Tq, H, Dv)
    lse = lse.permute(2, 0, 1).reshape(Tq, H)
    if sinks is not None:  # a token outside of all segments sees no sink either
        lse = core.where((queries.segment >= 0).unsqueeze(1), lse, -math.inf)
    return core.cast(out, q.dtype), lse


def _blocks(q: Tensor, queries: _Places):
    for start in range(0, len(q), _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield rows, _Places(queries.segment[rows], queries.position[rows])


def _attend(q, k, v, queries, keys, alibi, sinks, options, bias=None) -> tuple[Tensor, Tensor]:
    if len(q) == 0:
        H, Dv = q.shape[1], v.shape[2]
        return full((0, H, Dv), 0, q.dtype, q.backend), full((0, H), 0, wide(q).dtype, q.backend)
    parts = [
        _attend_block(q[rows], k, v, places, keys, alibi, sinks, options, bias)
        for rows, places in _blocks(q, queries)
    ]
    if len(parts) == 1:
        return parts[0]
    return core.concat([out for out, _ in parts]), core.concat([lse for _, lse in parts])


# -- the ops -------------------------------------------------------------------------------------
def _varlen_composite(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, sinks, options, bias=None):
    queries, keys = _varlen_places(q, k, cu_seqlens_q, cu_seqlens_k, options)
    return _attend(q, k, v, queries, keys, alibi, sinks, options, bias)


def _taken(cache: KV, blocks: Tensor) -> Tensor:
    """Those blocks of a cache, as floats."""
    taken = [core.take(plane, blocks, 0) for plane in planes_of(cache)]
    return unpacked_rows(PackedKV(*taken)) if isinstance(cache, PackedKV) else taken[0]


def _paged_composite(
    q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, alibi, sinks, options
):
    B, columns = block_table.shape
    bs = k_cache.shape[1]
    capacity = columns * bs
    blocks = core.maximum(block_table, 0).flatten()
    k, v = (
        _taken(c, blocks).reshape(B * capacity, c.shape[2], c.shape[3]) for c in (k_cache, v_cache)
    )
    # The newest position below kv_len that falls on each row of the ring; negative: never written.
    row = arange(capacity, backend=q.backend)
    newest = kv_lens.unsqueeze(1) - 1
    position = newest - core.mod(newest - row, capacity)
    written = (position >= 0) & (core.take(block_table, row // bs, 1) >= 0)
    owner = arange(B, backend=q.backend).unsqueeze(1)
    keys = _Places(core.where(written, owner, -1).flatten(), position.flatten())
    v = core.where(written.reshape(B * capacity, 1, 1), v, 0)  # what others left may be nan
    queries = _query_places(cu_seqlens_q, kv_lens, len(q), options)
    return _attend(q, k, v, queries, keys, alibi, sinks, options)


def _backward_composite(g, g_lse, out, lse, q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, options):
    """dq, dk, dv, in the dtypes of q, k, v. With p the probabilities, per query row:

    dv = pᵀ g; ds = p · (g vᵀ - rowsum(g · out) + g_lse) · slack;
    dq = scale · ds k; dk = scale · dsᵀ q.
    """
    queries, keys = _varlen_places(q, k, cu_seqlens_q, cu_seqlens_k, options)
    Tk, K, D = k.shape
    G, Dv = q.shape[1] // K, v.shape[2]

    def grouped(x: Tensor) -> Tensor:  # [T, H, W] -> [K, G*T, W]
        return (
            wide(x).reshape(len(x), K, G, x.shape[2]).permute(1, 2, 0, 3).reshape(K, -1, x.shape[2])
        )

    delta = core.sum(wide(g) * wide(out), -1, keepdims=True) - wide(g_lse).unsqueeze(-1)
    dqs, dk, dv = [], None, None
    for rows, places in _blocks(q, queries):
        seen, distance = _visible(places, keys, options)
        s, slack = _scores(q[rows], k, seen, distance, alibi, options)
        n = len(q[rows])
        norm = grouped(core.where(lse > -math.inf, lse, 0.0).unsqueeze(-1)[rows])
        p = core.exp(s.reshape(K, G * n, Tk) - norm)
        gb = grouped(g[rows])
        ds = p * (gb @ wide(v).permute(1, 2, 0) - grouped(delta[rows])) * options.scale
        if slack is not None:
            ds = ds * slack.reshape(K, G * n, Tk)
        dq = (ds @ wide(k).permute(1, 0, 2)).reshape(K, G, n, D).permute(2, 0, 1, 3)
        dqs.append(dq.reshape(n, K * G, D))
        part_k, part_v = ds.transpose() @ grouped(q[rows]), p.transpose() @ gb
        dk = part_k if dk is None else dk + part_k
        dv = part_v if dv is None else dv + part_v
    if dk is None or dv is None:
        return q.full_like(0), k.full_like(0), v.full_like(0)
    dk, dv = dk.permute(1, 0, 2), dv.reshape(K, Tk, Dv).permute(1, 0, 2)
    return core.cast(core.concat(dqs), q.dtype), core.cast(dk, k.dtype), core.cast(dv, v.dtype)


def _vjp(grads, outputs, q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, sinks, options):
    out, lse = outputs
    g = out.full_like(0) if grads[0] is None else grads[0]
    g_lse = lse.full_like(0) if grads[1] is None else grads[1]
    dq, dk, dv = _backward(g, g_lse, out, lse, q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, options)
    dsinks = None
    if sinks is not None and sinks.requires_grad:
        share = core.exp(core.cast(sinks, lse.dtype) - lse)
        flow = core.sum(wide(g) * wide(out), -1) - g_lse
        dsinks = core.cast(-core.sum(share * flow, 0), sinks.dtype)
    return dq, dk, dv, None, None, None, dsinks, None


_varlen = Op(
    "varlen_attention",
    _varlen_composite,
    vjp=_vjp,
    saves=("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "alibi", "sinks", 0, 1),
)
_biased = Op("varlen_attention_biased", _varlen_composite)  # which no kernel knows yet
_backward = Op("varlen_attention_backward", _backward_composite)
_paged = Op("paged_attention", _paged_composite)
