"""Truth for every op: plain float64 numpy that imports nothing of ours.

Written for reading, not for speed: one formula a function, loops over segments and heads. Kernels
and composites are both judged against this file (tests/tolerance.py says how closely).
Shapes: B batch, T packed tokens, S positions, H query heads, K kv heads, D head dim, V vocab.
"""

import math
from itertools import pairwise

import numpy as np

F64 = np.float64


def _f64(*arrays):
    return tuple(None if a is None else np.asarray(a).astype(F64) for a in arrays)


def rms_norm(x, weight=None, eps=1e-6, residual=None, weight_offset=0.0):
    """y = h / sqrt(mean(h^2) + eps) * (offset + weight), h = x + residual -> (y, h)."""
    x, weight, residual = _f64(x, weight, residual)
    h = x if residual is None else x + residual
    y = h / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + eps)
    return (y if weight is None else y * (weight_offset + weight)), h


def layer_norm(x, weight=None, bias=None, eps=1e-5, residual=None):
    """y = (h - mean) / sqrt(var + eps) * weight + bias, biased var -> (y, h)."""
    x, weight, bias, residual = _f64(x, weight, bias, residual)
    h = x if residual is None else x + residual
    y = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), h


def _yarn(base, dim, p, inv, factor):
    """Blend of extrapolation and interpolation by rotations per context. arXiv:2309.00071 (3.2)"""

    def correction_dim(rotations):
        length = p["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(base))

    low, high = correction_dim(p.get("beta_fast") or 32), correction_dim(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return inv / factor * ramp + inv * (1 - ramp)


def _yarn_attention_factor(p, factor):
    if p.get("attention_factor") is not None:
        return p["attention_factor"]
    m, m_all = p.get("mscale"), p.get("mscale_all_dim")
    log = 0.1 * math.log(max(factor, 1.0))
    return (m * log + 1) / (m_all * log + 1) if m and m_all else log + 1


def _llama3(p, inv):
    """Long wavelengths / factor, short ones kept, a linear blend between. As Llama 3.1."""
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    turns = p["original_max_position_embeddings"] * inv / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * inv / p["factor"] + smooth * inv


def rope_inv_freq(head_dim, rope_parameters, max_position_embeddings=None, seq_len=None):
    """-> (inv_freq [R/2], attention_factor), R = int(head_dim * partial_rotary_factor).

    `rope_parameters` is HF's v5 dict: rope_type, rope_theta, factor, ... `seq_len` is the whole
    length seen so far; only dynamic and longrope read it. After transformers modeling_rope_utils.
    """
    p, kind = rope_parameters, rope_parameters.get("rope_type", "default")
    base, dim = p.get("rope_theta", 10000.0), int(head_dim * p.get("partial_rotary_factor", 1.0))
    exponent, limit, factor = np.arange(0, dim, 2) / dim, max_position_embeddings, p.get("factor")
    inv = base**-exponent
    if kind == "default":
        return inv, 1.0
    if kind == "linear":
        return inv / factor, 1.0
    if kind == "llama3":
        return _llama3(p, inv), 1.0
    if kind == "dynamic":  # NTK-aware: the base grows with the length, nothing below `limit`
        growth = factor * max(seq_len or 0, limit) / limit - (factor - 1)
        return (base * growth ** (dim / (dim - 2))) ** -exponent, 1.0
    original = p["original_max_position_embeddings"]
    factor = factor or limit / original
    if kind == "yarn":
        return _yarn(base, dim, p, inv, factor), _yarn_attention_factor(p, factor)
    if kind == "longrope":  # arXiv:2402.13753; one factor list for every position of the sequence
        attention = p.get("attention_factor")
        if attention is None:
            attention = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
        ext = p["long_factor"] if (seq_len or 0) > original else p["short_factor"]
        return inv / np.asarray(ext, F64), attention
    raise ValueError(f"rope_type {kind!r}")


def rope_tables(positions, inv_freq, attention_factor=1.0):
    """-> cos, sin [S, R/2] = attention_factor * (cos, sin)(position * inv_freq)."""
    angle = np.asarray(positions, F64)[:, None] * inv_freq[None, :]
    return np.cos(angle) * attention_factor, np.sin(angle) * attention_factor


def rope(x, cos, sin, positions=None, interleaved=False, inverse=False):
    """Rotate x [T, H, D] by cos/sin [S, R/2] at rows `positions` [T]; dims R.. pass.

    Pairs: split-half (d, d + R/2), as HF; interleaved (2d, 2d + 1), as GPT-J and Meta's llama.
    `inverse` rotates back, which is also the gradient with respect to x. arXiv:2104.09864
    """
    x, cos, sin = _f64(x, cos, sin)
    rows = np.arange(len(x)) if positions is None else np.asarray(positions)
    c, s = cos[rows][:, None, :], sin[rows][:, None, :] * (-1 if inverse else 1)
    half = cos.shape[1]
    even = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    odd = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    y = x.copy()
    y[..., even] = x[..., even] * c - x[..., odd] * s
    y[..., odd] = x[..., odd] * c + x[..., even] * s
    return y


def attention_mask(len_q, len_k, causal=False, window=None, alignment="bottom-right"):
    """-> visible bool, j - p, both [len_q, len_k]; p = i, + len_k - len_q if bottom-right.

    Visible: j <= p if causal; p - left <= j <= p + right for a window, None or -1 = no limit.
    """
    if alignment not in ("bottom-right", "top-left"):
        raise ValueError(f"alignment {alignment!r}")
    shift = len_k - len_q if alignment == "bottom-right" else 0
    distance = np.arange(len_k)[None, :] - np.arange(len_q)[:, None] - shift
    left, right = (None if w is None or w < 0 else w for w in window or (None, None))
    visible = np.ones((len_q, len_k), bool)
    visible &= distance <= (0 if causal else np.inf)
    visible &= distance >= (-np.inf if left is None else -left)
    visible &= distance <= (np.inf if right is None else right)
    return visible, distance


def _head(q, k, visible, distance, scale, softcap, slope, sink, bias):
    """One head of one segment -> probabilities [Sq, Sk], lse [Sq], d(score)/d(q.k * scale)."""
    s = q @ k.T * scale
    slack = np.ones_like(s)
    if softcap is not None:
        t = np.tanh(s / softcap)
        s, slack = softcap * t, 1 - t * t
    if slope is not None:  # flash-attention: after the softcap, -slope * |j - p|
        s = s - slope * np.abs(distance)
    if bias is not None:  # MPNet, T5: by distance, all that are farther than M as if M
        M = len(bias) // 2
        s = s + np.asarray(bias, np.float64)[np.clip(distance, -M, M) + M]
    s = np.where(visible, s, -np.inf)
    if sink is not None:  # gpt-oss: one more logit that takes probability and has no value
        s = np.concatenate([s, np.full((len(s), 1), sink)], axis=1)
    safe = np.maximum(s.max(axis=1, initial=-np.inf), -1e300)  # a row without keys: not -inf
    total = np.exp(s - safe[:, None]).sum(axis=1)
    lse = np.where(total > 0, safe + np.log(np.where(total > 0, total, 1.0)), -np.inf)
    s = s[:, : len(k)]
    return np.exp(s - np.where(np.isfinite(lse), lse, 0.0)[:, None]), lse, slack


def _segments(
    q, k, cu_seqlens_q, cu_seqlens_k, *, causal=False, window=None, scale=None, softcap=None,
    alibi_slopes=None, sinks=None, distance_bias=None, causal_alignment="bottom-right",
):  # fmt: skip
    """Each (segment, head): rows of q, rows of k, head, kv head, scale, what _head returns."""
    H, K, scale = q.shape[1], k.shape[1], q.shape[2] ** -0.5 if scale is None else scale
    if H % K:
        raise ValueError(f"{H} query heads are not a multiple of {K} kv heads")
    for (a, b), (c, d) in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True):
        visible, distance = attention_mask(b - a, d - c, causal, window, causal_alignment)
        for h in range(H):
            slope, sink = (None if t is None else float(t[h]) for t in (alibi_slopes, sinks))
            kv, bias = h // (H // K), None if distance_bias is None else distance_bias[h]
            part = _head(
                q[a:b, h], k[c:d, kv], visible, distance, scale, softcap, slope, sink, bias
            )
            yield slice(a, b), slice(c, d), h, kv, scale, part


def varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    """softmax(scale q k^T) v per segment: q [Tq,H,D], k [Tk,K,D], v [Tk,K,Dv] -> out, lse [Tq,H].

    score = cap * tanh(scale q.k / cap) - slope |j - p|; lse is the log of the normaliser, with a
    sink's exp(sink) in it. No visible key: out 0, lse -inf (lse = sink where there is one). Tokens
    outside the segments: out 0, lse -inf. `options`: see _segments. arXiv:2205.14135
    """
    q, k, v = _f64(q, k, v)
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[:2], -np.inf)
    for rq, rk, h, kv, _, part in _segments(q, k, cu_seqlens_q, cu_seqlens_k, **options):
        out[rq, h], lse[rq, h] = part[0] @ v[rk, kv], part[1]
    return out, lse


def varlen_attention_backward(dout, q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    """-> dq, dk, dv. dv = p^T dout; ds = p (dout v^T - rowsum(dout * out)); a group's heads add."""
    dout, q, k, v = _f64(dout, q, k, v)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for rq, rk, h, kv, scale, part in _segments(q, k, cu_seqlens_q, cu_seqlens_k, **options):
        p, _, slack = part
        dp = dout[rq, h] @ v[rk, kv].T
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) * slack * scale
        dq[rq, h] = ds @ k[rk, kv]
        dk[rk, kv] += ds.T @ q[rq, h]
        dv[rk, kv] += p.T @ dout[rq, h]
    return dq, dk, dv


def paged_rows(cache, table_row, kv_len):
    """Rows 0..kv_len of one sequence: position j is in block table_row[(j // bs) % max_blocks].

    The table wraps (a ring for sliding windows): a row that a later position has overwritten, or
    whose block is negative, reads as 0 and must be outside every query's window.
    """
    bs, columns = cache.shape[1], len(table_row)
    rows = np.zeros((kv_len, *cache.shape[2:]), cache.dtype)
    for j in range(kv_len):
        block = table_row[(j // bs) % columns]
        if j >= kv_len - bs * columns and block >= 0:
            rows[j] = cache[block, j % bs]
    return rows


def paged_attention(q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, **options):
    """varlen_attention over caches [NB, bs, K, D], block_table [B, max_blocks], kv_lens [B]."""
    k, v = (
        np.concatenate(
            [paged_rows(c, t, int(n)) for t, n in zip(block_table, kv_lens, strict=True)]
        )
        for c in _f64(k_cache, v_cache)
    )
    cu_seqlens_k = np.concatenate([[0], np.cumsum(kv_lens)])
    return varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)


def kv_write(cache, new, slots):
    """cache [NB, bs, K, D] with row slot = block * bs + offset set to new [T, K, D]; < 0 skips."""
    flat = np.array(cache).reshape(-1, *cache.shape[2:])
    for row, slot in zip(new, slots, strict=True):
        if slot >= 0:
            flat[slot] = row
    return flat.reshape(cache.shape)


def linear(x, weight, bias=None):
    """y = x weight^T + bias; weight [N, K]."""
    x, weight, bias = _f64(x, weight, bias)
    return x @ weight.T if bias is None else x @ weight.T + bias


def quantize_int8(w, group=None):
    """Symmetric int8 along the last axis -> q int8 [N, K], scale f32 [N, ceil(K / group)].

    scale = absmax / 127 (0 for an all-zero group: q = 0), q = rint(w / scale), half to even. The
    last group may be short; group None is the whole row (per channel, or per token). In float32
    on purpose: the quotient is correctly rounded, so q can be compared exactly.
    """
    w = np.asarray(w).astype(np.float32)
    N, K = w.shape
    group = group or K
    q, scale = np.zeros((N, K), np.int8), np.zeros((N, -(-K // group)), np.float32)
    for g, start in enumerate(range(0, K, group)):
        part = w[:, start : start + group]
        scale[:, g] = np.abs(part).max(axis=1) / np.float32(127)
        safe = np.where(scale[:, g] > 0, scale[:, g], np.float32(1))[:, None]
        q[:, start : start + group] = np.clip(np.rint(part / safe), -127, 127)
    return q, scale


def dequantize_int8(q, scale, group=None):
    """w = q * scale of its group. group None: one scale a row."""
    return (
        q.astype(F64) * np.repeat(scale.astype(F64), group or q.shape[1], axis=1)[:, : q.shape[1]]
    )


def linear_w8a8(x, q, scale, bias=None):
    """Dynamic W8A8: x [T, K] to int8 per token, integer sums, y = sum * x_scale * scale + bias."""
    xq, x_scale = quantize_int8(x)
    y = (xq.astype(np.int64) @ q.astype(np.int64).T) * x_scale.astype(F64) * scale.astype(F64).T
    return y if bias is None else y + _f64(bias)[0]


def embedding(ids, weight):
    return np.asarray(weight)[np.asarray(ids)].astype(F64)


def silu(x):
    """x sigmoid(x), without overflow for large negative x."""
    x = np.asarray(x, F64)
    e = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def gelu(x, approximate="none"):
    """x Phi(x); "tanh": x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). arXiv:1606.08415"""
    x = np.asarray(x, F64)
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * np.vectorize(math.erfc, otypes=[F64])(-x / math.sqrt(2))


def swiglu(gate, up):
    """silu(gate) * up. arXiv:2002.05202"""
    return silu(gate) * np.asarray(up, F64)


def geglu(gate, up, approximate="none"):
    return gelu(gate, approximate) * np.asarray(up, F64)


def log_softmax(x, axis=-1):
    """x - log sum exp x; a row of -inf gives nan, as it has no distribution."""
    x = np.asarray(x, F64)
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def softmax(x, axis=-1):
    return np.exp(log_softmax(x, axis))


def cross_entropy(
    logits, labels, *, reduction="mean", ignore_index=-100, label_smoothing=0.0, softcap=None
):
    """-log softmax(logits)[label], [T, V] and [T]; the mean is over labels that count (torch).

    smoothing s: (1 - s) nll + s * mean over V of -log p. No label counts: mean is nan, sum is 0.
    """
    x, labels = np.asarray(logits, F64), np.asarray(labels)
    log_p = log_softmax(x if softcap is None else softcap * np.tanh(x / softcap))
    counts = labels != ignore_index
    nll = -log_p[np.arange(len(labels)), np.where(counts, labels, 0)]
    loss = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(axis=1)
    loss = np.where(counts, loss, 0.0)
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    return loss.sum() / counts.sum() if counts.any() else F64("nan")


def penalize(
    logits, prompt=(), output=(), repetition=1.0, presence=0.0, frequency=0.0, logit_bias=None
):
    """Logits [V] after the penalties, then + logit_bias {id: bias}.

    repetition (HF; arXiv:1909.05858): each id in prompt or output, once: x / penalty if x > 0, else
    x * penalty. presence, frequency (OpenAI): on the counts in output alone.
    """
    x = np.array(logits, F64)
    seen = sorted({*map(int, prompt), *map(int, output)})
    x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    counts = np.bincount(np.asarray(output, np.int64), minlength=len(x))
    x -= presence * (counts > 0) + frequency * counts
    for token, bias in (logit_bias or {}).items():
        x[token] += bias
    return x


def sampling_probabilities(
    logits, temperature=1.0, top_k=None, top_p=None, min_p=None, **penalties
):
    """Final distribution [V]: penalties -> temperature -> top-k -> top-p -> min-p -> sum 1.

    Candidates are in order of falling logit, ties by rising id. top-k keeps the first k; top-p the
    shortest prefix whose mass reaches p; min-p those with probability >= min_p * the largest; each
    after renormalising. temperature 0 is argmax (lowest id). As HF's warpers, but exact on ties.
    """
    x = penalize(logits, **penalties)
    order = np.argsort(-x, kind="stable")
    if temperature == 0:
        return np.eye(1, len(x), order[0])[0]
    p = softmax(x[order] / temperature)
    keep = np.ones(len(x), bool)
    if top_k:
        keep &= np.arange(len(x)) < top_k
        p = p * keep / (p * keep).sum()
    if top_p is not None:
        keep &= np.cumsum(p) - p < top_p
        p = p * keep / (p * keep).sum()
    if min_p is not None:
        keep &= p >= min_p * p[0]
    result = np.zeros(len(x))
    result[order] = p * keep / (p * keep).sum()
    return result
