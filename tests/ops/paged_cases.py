"""Calls of paged attention with few queries each: inputs, float64 truth, comparison."""

from __future__ import annotations

import itertools

import numpy as np
import oracles_kv
from draws import normal
from tolerance import rms

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def reference(arrays, options):
    """out, lse, and the rms of the weights of each row's keys (what rounding of weights moves)."""
    q, k_cache, v_cache, cu, table, lens = arrays
    q, k_cache, v_cache = (x.astype(np.float64) for x in (q, k_cache, v_cache))
    (T, H, D), (_, bs, K, Dv) = q.shape, v_cache.shape
    scale = options.get("scale", D**-0.5)
    cap, slopes, sinks = (options.get(n) for n in ("softcap", "alibi_slopes", "sinks"))
    left, right = (-1 if w is None else w for w in options.get("window") or (-1, -1))
    top_left = options.get("causal_alignment") == "top-left"
    out, lse, spread = np.zeros((T, H, Dv)), np.full((T, H), -np.inf), np.zeros((T, H))
    for b, (start, end) in enumerate(itertools.pairwise(cu)):
        p = np.arange(max(0, lens[b] - table.shape[1] * bs), lens[b])
        blocks = table[b, p // bs % table.shape[1]]
        p, blocks = p[blocks >= 0], blocks[blocks >= 0]
        keys, values = k_cache[blocks, p % bs], v_cache[blocks, p % bs]
        for t in range(start, end):
            at = t - start + (0 if top_left else lens[b] - (end - start))
            seen = p <= at if options.get("causal", True) else np.ones(len(p), bool)
            seen &= (p >= at - left) | (left < 0)
            seen &= (p <= at + right) | (right < 0)
            for h in range(H):
                s = keys[seen, h // (H // K)] @ q[t, h] * scale
                s = cap * np.tanh(s / cap) if cap else s
                s = s - slopes[h] * np.abs(p[seen] - at) if slopes is not None else s
                both = s if sinks is None else np.append(s, sinks[h])
                if not len(both):
                    continue
                w = np.exp(s - both.max())
                total = np.exp(both - both.max()).sum()
                out[t, h] = w / total @ values[seen, h // (H // K)]
                lse[t, h] = np.log(total) + both.max()
                spread[t, h] = np.sqrt((w * w).sum()) / total
    return out, lse, spread


def compare(got, arrays, options, like=None):
    """`like`: keys and values as large as those that are used, where the caches hold others."""
    want, want_lse, spread = reference(arrays, options)
    out, lse = (x.numpy() for x in got)
    q, (k, v) = arrays[0], like or arrays[1:3]
    size = 2 + rms(q) * rms(k) * options.get("scale", q.shape[2] ** -0.5) * q.shape[2] ** 0.5
    slopes = options.get("alibi_slopes")
    size += 0 if slopes is None else float(slopes.max()) * int(arrays[5].max(initial=0))
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want_lse))
    seen = ~np.isneginf(want_lse)
    noise = 16 * EPS["float32"] * size
    bad = np.abs(lse[seen] - want_lse[seen])
    assert np.all(bad <= noise), f"lse: {(bad > noise).sum()} off by up to {bad.max():.3g}"
    eps = EPS[str(out.dtype)] if out.dtype != np.float32 else 0.0
    spread = spread[..., None] * rms(v)
    allowed = noise * max(rms(v), 1) + 2 * eps * (np.abs(want) + spread)
    error = np.abs(out.astype(np.float64) - want)
    if not error.size:
        return
    at = np.unravel_index(int(np.argmax(np.nan_to_num(error / allowed, nan=np.inf))), error.shape)
    assert np.all(error <= allowed), (
        f"out: {int((~(error <= allowed)).sum())} of {error.size}, worst {at}: {out[at]:.6g} "
        f"for {want[at]:.6g}, allowed {allowed[at]:.3g}"
    )


def build(rng, len_q, len_k, H, K, D, *, bs=16, columns=None, dtype="bfloat16", cache=None,
          Dv=None, holes=0.0, extra=0):  # fmt: skip
    """Arrays of a call; blocks in random order, table entries -1 with probability `holes`."""
    need = [-(-n // bs) for n in len_k]
    columns = columns or max([1, *need])
    B, NB = len(len_k), sum(min(n, columns) for n in need) + 3
    table, free = np.full((B, columns), -1, np.int32), list(rng.permutation(NB))
    for b, n in enumerate(need):
        for c in range(min(n, columns)):
            table[b, c] = free.pop() if rng.random() >= holes else -1
    q = normal(rng, (sum(len_q) + extra, H, D), dtype)
    k, v = (normal(rng, (NB, bs, K, d), cache or dtype) for d in (D, Dv or D))
    cu = np.cumsum([0, *len_q]).astype(np.int32)
    return q, k, v, cu, table, np.array(len_k, np.int32)


# What rows of device state make of a call: sequences that have ended among others that run.
# name -> (queries, keys; None: ended, with a table that still names blocks)
ENDED = {
    "alone": ([1], [0]),
    "alone-with-table": ([1], [None]),
    "between": ([1] * 7, [0, 40, None, 0, 333, 1, 0]),
    "many": ([1] * 40, [0, 17, None, 0, 90] * 8),
    "several-queries": ([3, 2, 4, 1], [0, 35, None, 64]),
    "prompts": ([30, 20, 9, 70, 5], [0, 50, None, 70, 0]),
}


def ended(rng, name, *shape, columns=None, **options):
    """A call of ENDED, in whose caches all that nobody may read is nan; and finite caches."""
    len_q, len_k = ENDED[name]
    arrays = build(
        rng, len_q, [20 if n is None else n for n in len_k], *shape, columns=columns, **options
    )
    arrays[5][[n is None for n in len_k]] = 0
    return poisoned(arrays), arrays[1:3]


def poisoned(arrays):
    """The arrays, with nan in the rows of the caches that are none of a sequence's positions."""
    q, k, v, cu, table, lens = arrays
    (B, columns), bs = table.shape, k.shape[1]
    known = np.zeros(k.shape[:2], bool)
    for b in range(B):
        p = np.arange(max(0, lens[b] - columns * bs), lens[b])
        blocks = table[b, p // bs % columns]
        known[blocks[blocks >= 0], p[blocks >= 0] % bs] = True
    nan = np.array(np.nan, k.dtype)
    k, v = (np.where(known[:, :, None, None], x, nan) for x in (k, v))
    return q, k, v, cu, table, lens


def ended_packed(rng, name, form, *shape, **options):
    """The same with caches packed in `form`: arrays of what they mean, planes, finite numbers."""
    (q, *caches, cu, table, lens), _ = ended(rng, name, *shape, **options)
    planes = [oracles_kv.drawn(rng, c.shape, form) for c in caches]
    finite = [oracles_kv.numbers(*p) for p in planes]
    for (_, scales), cache in zip(planes, caches, strict=True):
        scales[np.isnan(cache.astype(np.float32)).any((2, 3))] = np.nan
    return (q, *(oracles_kv.numbers(*p) for p in planes), cu, table, lens), planes, finite
