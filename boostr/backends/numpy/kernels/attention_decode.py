"""Attention of single query rows: decode steps, where reading the cache is the work.

One item is (query row t, split s, kv head): its G = H / K query heads share each tile of TILE keys,
so the cache is read once. A row's keys are divided into `splits` parts (flash-decoding) by what
kv_lens says when the kernel runs; part s writes its softmax(q k) v and log-sum-exp to out, lse
[T, H, splits, ...], and `combine` joins them. With one split these are the results.
Limits: G <= MAX_GROUP. Source: Dao et al. 2023, Flash-Decoding for long-context inference.
"""

from numba import float32

from boostr.backends.numpy.kernels import layout_ops as at
from boostr.backends.numpy.kernels.attention_keys import (
    first_key,
    key_count,
    last_key,
    list_keys,
    segment_of,
    shift_of,
)
from boostr.backends.numpy.kernels.memory import (
    f32,
    float_param,
    i32,
    i64,
    load,
    load_n,
    stack,
    store,
    store_n,
)
from boostr.backends.numpy.kernels.simd import (
    LANES,
    absolute,
    fill,
    fma,
    inline,
    iota,
    less,
    maximum,
    select,
    vector,
)
from boostr.backends.numpy.kernels.special import log, tanh
from boostr.backends.numpy.kernels.tables import pointers, sum_each
from boostr.backends.numpy.kernels.vmath import exp, reduce_add, reduce_max

HEADS, KV_HEADS, LSE, OUT, Q, Q_STRIDE = at.HEADS, at.KV_HEADS, at.LSE, at.OUT, at.Q, at.Q_STRIDE
SCALE, SOFTCAP, ALIBI, SINKS, SPLITS = at.SCALE, at.SOFTCAP, at.ALIBI, at.SINKS, at.SPLITS
WIDTH, V_WIDTH, MAX_GROUP = at.WIDTH, at.V_WIDTH, at.MAX_GROUP
TILE = 32
WORDS = 2 * TILE  # floats in the room of TILE int64
MINUS_INF = float("-inf")


@inline
def _dots(q, keys, j, D):
    """q · k of LANES keys from entry j on."""
    rows = pointers(keys, j, LANES)
    acc = fill(LANES, 0.0)
    whole = D - D % LANES
    for d in range(0, whole, LANES):
        acc = fma(load(rows, d), load(q, d), acc)
    if whole < D:
        acc = fma(load_n(rows, whole, D - whole), load_n(q, whole, D - whole), acc)
    return sum_each(acc)


@inline
def _scores(params, q, h, keys, places, position, n, scores):
    """Writes the scores of n keys (-inf up to the next multiple of LANES); their maximum."""
    scale, softcap = float_param(params[SCALE]), float_param(params[SOFTCAP])
    top = vector(MINUS_INF)
    for j in range(0, n, LANES):
        s = _dots(q, keys, j, params[WIDTH]) * scale
        if softcap != 0:
            s = tanh(s / softcap) * softcap
        if params[ALIBI] != 0:
            away = absolute(load(places, j) - float32(position))
            s = s - away * f32(params[ALIBI])[h]
        s = select(less(iota(), n - j), s, MINUS_INF)
        store(scores, j, s)
        top = maximum(top, s)
    return reduce_max(top)


@inline
def _weights(scores, n, top):
    """scores = exp(scores - top); their sum."""
    total = vector(0.0)
    for j in range(0, n, LANES):
        p = exp(load(scores, j) - top)
        store(scores, j, p)
        total = total + p
    return reduce_add(total)


@inline
def _four(x, d):
    return load(x, d), load(x, d + LANES), load(x, d + 2 * LANES), load(x, d + 3 * LANES)


@inline
def _add_values(out, values, scores, n, decay, Dv):
    """out = out * decay + sum over n keys of weight * value."""
    whole = Dv - Dv % (4 * LANES)
    for d in range(0, whole, 4 * LANES):
        acc = fma(_four(out, d), decay, 0.0)
        for j in range(n):
            acc = fma(_four(f32(values[j]), d), scores[j], acc)
        store(out, d, acc[0])
        store(out, d + LANES, acc[1])
        store(out, d + 2 * LANES, acc[2])
        store(out, d + 3 * LANES, acc[3])
    for d in range(whole, Dv, LANES):
        one = load_n(out, d, Dv - d) * decay
        for j in range(n):
            one = fma(load_n(f32(values[j]), d, Dv - d), scores[j], one)
        store_n(out, d, one, Dv - d)


@inline
def _begin(params, out, tops, totals, h0, G, with_sink):
    """Empty sums; one split of a row starts with the sink, if there is one."""
    step, sink = params[SPLITS] * params[V_WIDTH], with_sink and params[SINKS] != 0
    for g in range(G):
        tops[g] = f32(params[SINKS])[h0 + g] if sink else float32(MINUS_INF)
        totals[g] = float32(1.0) if sink else float32(0.0)
        for d in range(0, params[V_WIDTH], LANES):
            store_n(out + g * step, d, vector(0.0), params[V_WIDTH] - d)


@inline
def _end(params, out, lse, tops, totals, G):
    """Divides by the sums and writes their logarithms."""
    Dv, splits = params[V_WIDTH], params[SPLITS]
    for g in range(G):
        row, total = out + g * splits * Dv, totals[g]
        if total > 0:
            share = float32(1.0) / total
            for d in range(0, Dv, LANES):
                store_n(row, d, load_n(row, d, Dv - d) * share, Dv - d)
            lse[g * splits] = tops[g] + reduce_max(log(vector(total)))
        else:
            lse[g * splits] = MINUS_INF


def decode():
    """Parameters as in `layout_ops.py`."""

    def kernel(params, start, stop):
        H, K, splits, Dv = params[HEADS], params[KV_HEADS], params[SPLITS], params[V_WIDTH]
        G = H // K
        keys, values = i64(stack(WORDS)), i64(stack(WORDS))
        where = i64(stack(WORDS))
        scores, places = f32(stack(TILE)), f32(stack(TILE))
        tops, totals = f32(stack(MAX_GROUP)), f32(stack(MAX_GROUP))
        for item in range(start, stop):
            kv, split, t = item % K, item // K % splits, item // (K * splits)
            first_head = kv * G
            cell = (t * H + first_head) * splits + split
            out, lse = f32(params[OUT]) + cell * Dv, f32(params[LSE]) + cell
            b = segment_of(params, t)
            _begin(params, out, tops, totals, first_head, G, b >= 0 and split == 0)
            position, low, high = 0, 0, 0
            if b >= 0:
                count = key_count(params, b)
                position = t - i32(params[at.CU_Q])[b] + shift_of(params, b, count)
                low, high = first_key(params, count, position), last_key(params, count, position)
                part = ((max(high - low, 0) + splits - 1) // splits + TILE - 1) // TILE * TILE
                low += split * part
                high = min(high, low + part)
            while low < high:
                n = list_keys(params, kv, b, low, min(low + TILE, high), keys, values, where)
                for j in range(n, TILE):
                    keys[j] = keys[0]
                for j in range(n):
                    places[j] = float32(where[j])
                for g in range(G if n > 0 else 0):
                    q = f32(params[Q]) + (t * params[Q_STRIDE] + (first_head + g) * params[WIDTH])
                    top = _scores(params, q, first_head + g, keys, places, position, n, scores)
                    top = max(tops[g], top)
                    if top > MINUS_INF:
                        decay = exp(tops[g] - top)
                        tops[g] = top
                        totals[g] = totals[g] * decay + _weights(scores, n, top)
                        _add_values(out + g * splits * Dv, values, scores, n, decay, Dv)
                low += TILE
            _end(params, out, lse, tops, totals, G)

    return kernel


def combine():
    """Joins parts [rows, splits, Dv] and their lse [rows, splits]; a row is one item.

    params: parts, lse of parts, out, lse, splits, Dv.
    """

    def kernel(params, start, stop):
        splits, Dv = params[4], params[5]
        for row in range(start, stop):
            parts, logs = f32(params[0]) + row * splits * Dv, f32(params[1]) + row * splits
            out = f32(params[2]) + row * Dv
            top = float32(MINUS_INF)
            for s in range(splits):
                top = max(top, logs[s])
            for d in range(0, Dv, LANES):
                store_n(out, d, vector(0.0), Dv - d)
            f32(params[3])[row] = top
            if top > MINUS_INF:
                total = float32(0.0)
                for s in range(splits):
                    total += exp(logs[s] - top)
                lse = top + reduce_max(log(vector(total)))
                f32(params[3])[row] = lse
                for s in range(splits):
                    share = exp(logs[s] - lse)
                    if share > 0:
                        for d in range(0, Dv, LANES):
                            n = Dv - d
                            part = load_n(parts + s * Dv, d, n)
                            store_n(out, d, fma(part, share, load_n(out, d, n)), n)

    return kernel
