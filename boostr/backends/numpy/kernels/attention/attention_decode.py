"""Attention of single query rows: decode steps, where reading the cache is the work.

One item is (query row t, split s). It goes through its keys in tiles of TILE, all heads of a tile
together, so that the cache is read once, in the order of memory, and asks for the next tile, be it
the next item's, while it works on one. A row's keys are divided into `splits` parts
(flash-decoding) by what kv_lens says when the kernel runs; part s writes its softmax(q k) v and
log-sum-exp to out, lse [T, H, splits, ...], and `combine` joins them. With one split these are the
results.
Limits: H <= MAX_HEADS. Source: Dao et al. 2023, Flash-Decoding for long-context inference.
"""

from numba import float32

from boostr.backends.numpy.kernels.attention.attention_keys import (
    first_key,
    key_count,
    last_key,
    list_keys,
    segment_of,
    shift_of,
)
from boostr.backends.numpy.kernels.attention.packed import reader, room_of
from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.kernels.runtime.memory import (
    f32,
    float_param,
    i32,
    i64,
    load,
    load_n,
    prefetch,
    stack,
    store,
    store_n,
)
from boostr.backends.numpy.kernels.runtime.simd import (
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
from boostr.backends.numpy.kernels.runtime.special import log, tanh
from boostr.backends.numpy.kernels.runtime.tables import pointers, sum_each
from boostr.backends.numpy.kernels.runtime.vmath import exp, reduce_add, reduce_max

HEADS, KV_HEADS, LSE, OUT, Q, Q_STRIDE = at.HEADS, at.KV_HEADS, at.LSE, at.OUT, at.Q, at.Q_STRIDE
SCALE, SOFTCAP, ALIBI, SINKS, SPLITS = at.SCALE, at.SOFTCAP, at.ALIBI, at.SINKS, at.SPLITS
WIDTH, V_WIDTH, MAX_HEADS, CU_Q = at.WIDTH, at.V_WIDTH, at.MAX_HEADS, at.CU_Q
K_CODES, V_CODES = at.K_CODES, at.V_CODES
TILE = 32
ROOM = 12 * TILE  # two lists of keys, values and positions: 2 * 3 * TILE int64, in floats
MINUS_INF = float("-inf")
LEAST = -1e38  # below every score, and finite: exp(-inf - LEAST) = 0 where there are none


@inline
def _dots(q, keys, j, first, D):
    """q · k of LANES keys from entry j on; the head's part of a row begins at element `first`."""
    rows = pointers(keys, j, LANES)
    acc = fill(LANES, 0.0)
    whole = D - D % LANES
    for d in range(0, whole, LANES):
        acc = fma(load(rows, first + d), load(q, d), acc)
    if whole < D:
        acc = fma(load_n(rows, first + whole, D - whole), load_n(q, whole, D - whole), acc)
    return sum_each(acc)


@inline
def _scores(params, q, h, first, keys, places, position, n, scores):
    """Writes the scores of n keys (-inf up to the next multiple of LANES); their maximum."""
    scale, softcap = float_param(params[SCALE]), float_param(params[SOFTCAP])
    top = vector(MINUS_INF)
    for j in range(0, n, LANES):
        s = _dots(q, keys, j, first, params[WIDTH]) * scale
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
def _add_values(out, values, first, scores, n, decay, Dv):
    """out = out * decay + sum over n keys of weight * value."""
    whole = Dv - Dv % (4 * LANES)
    for d in range(0, whole, 4 * LANES):
        acc = fma(_four(out, d), decay, 0.0)
        for j in range(n):
            acc = fma(_four(f32(values[j]), first + d), scores[j], acc)
        store(out, d, acc[0])
        store(out, d + LANES, acc[1])
        store(out, d + 2 * LANES, acc[2])
        store(out, d + 3 * LANES, acc[3])
    for d in range(whole, Dv, LANES):
        one = load_n(out, d, Dv - d) * decay
        for j in range(n):
            one = fma(load_n(f32(values[j]), first + d, Dv - d), scores[j], one)
        store_n(out, d, one, Dv - d)


@inline
def _begin(params, out, tops, totals, with_sink):
    """Empty sums; one split of a row starts with the sink, if there is one."""
    step, sink = params[SPLITS] * params[V_WIDTH], with_sink and params[SINKS] != 0
    for h in range(params[HEADS]):
        tops[h] = f32(params[SINKS])[h] if sink else float32(MINUS_INF)
        totals[h] = float32(1.0) if sink else float32(0.0)
        for d in range(0, params[V_WIDTH], LANES):
            store_n(out + h * step, d, vector(0.0), params[V_WIDTH] - d)


@inline
def _end(params, out, lse, tops, totals):
    """Divides by the sums and writes their logarithms."""
    Dv, splits = params[V_WIDTH], params[SPLITS]
    for h in range(params[HEADS]):
        row, total = out + h * splits * Dv, totals[h]
        if total != 0:  # nan is not > 0
            share = float32(1.0) / total
            for d in range(0, Dv, LANES):
                store_n(row, d, load_n(row, d, Dv - d) * share, Dv - d)
            lse[h * splits] = tops[h] + reduce_max(log(vector(total)))
        else:
            lse[h * splits] = MINUS_INF


@inline
def _ask(table, first, last, codes, count):
    """Prefetches rows first..last of a table into L2: `count` floats at each address, or bytes of
    `codes` at each number (of int4 half of them, and the next row's)."""
    step, size = (count, count) if codes != 0 else (1, 4 * count)
    for j in range(first, last):
        for offset in range(0, size, 64):
            prefetch(codes + table[j] * step + offset, 64, 2)


@inline
def _part(params, item):
    """(segment, position of the query, first key, one past the last key) of an item; segment -1 and
    no keys where the query is in none, or there is no such item."""
    splits = params[SPLITS]
    split, t = item % splits, item // splits
    b = segment_of(params, t)
    if b < 0:
        return b, 0, 0, 0
    count = key_count(params, b)
    position = t - i32(params[CU_Q])[b] + shift_of(params, b, count)
    low, high = first_key(params, count, position), last_key(params, count, position)
    size = (max(high - low, 0) + splits - 1) // splits
    size = (size + TILE - 1) // TILE * TILE
    low += split * size
    return b, position, low, min(high, low + size)


def decode(kv: str):
    """Parameters as in `layout_ops.py`; kv: "float" or the form that keys and values have."""
    tile = reader(kv, TILE)
    wide = room_of(kv, TILE, 2 * at.MAX_WIDTH)

    def kernel(params, start, stop):
        H, K, splits, Dv = params[HEADS], params[KV_HEADS], params[SPLITS], params[V_WIDTH]
        D, G = params[WIDTH], H // K
        room = i64(stack(ROOM))
        scores, places = f32(stack(TILE)), f32(stack(TILE))
        tops, totals = f32(stack(MAX_HEADS)), f32(stack(MAX_HEADS))
        floats = stack(wide)
        for item in range(start, stop):
            split, t = item % splits, item // splits
            out, lse = f32(params[OUT]) + (t * H * splits + split) * Dv, f32(params[LSE])
            lse = lse + (t * H * splits + split)
            b, position, low, high = _part(params, item)
            _begin(params, out, tops, totals, b >= 0 and split == 0)
            n, turn, keys = 0, 0, room + 3 * TILE
            while n > 0 or low < high:  # works on n keys while it asks for the next ones
                ask = room + turn * (3 * TILE)
                here = low < high
                if not here:  # its last keys are at hand: the next item's first ones
                    b, _, low, high = _part(params, item + 1)
                last = min(low + TILE, high)
                more = list_keys(params, b, low, last, ask, ask + TILE, ask + 2 * TILE)
                low, turn = max(low, last), 1 - turn
                for j in range(n, TILE):
                    keys[j] = keys[0]
                for j in range(n):
                    places[j] = float32(keys[2 * TILE + j])
                for h in range(H):
                    first, last = h * more // H, (h + 1) * more // H
                    _ask(ask, first, last, params[K_CODES], K * D)
                    _ask(ask + TILE, first, last, params[V_CODES], K * Dv)
                    if n > 0:
                        q = f32(params[Q]) + (t * params[Q_STRIDE] + h * D)
                        if h % G == 0:
                            mine = tile(params, keys, keys + TILE, n, h // G, floats)
                        k_rows, v_rows, k_first, v_first = mine
                        top = _scores(params, q, h, k_first, k_rows, places, position, n, scores)
                        top = max(max(tops[h], top), float32(LEAST))
                        decay = exp(tops[h] - top)
                        tops[h] = top
                        totals[h] = totals[h] * decay + _weights(scores, n, top)
                        row = out + h * splits * Dv
                        _add_values(row, v_rows, v_first, scores, n, decay, Dv)
                keys, n = ask, more
                if not here:
                    break
            _end(params, out, lse, tops, totals)

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
            top, empty = float32(MINUS_INF), True
            for s in range(splits):
                top = max(top, logs[s])
                empty = empty and logs[s] == MINUS_INF
            for d in range(0, Dv, LANES):
                store_n(out, d, vector(0.0), Dv - d)
            f32(params[3])[row] = top
            if not empty:
                total = float32(0.0)
                for s in range(splits):
                    total += exp(logs[s] - top)
                lse = top + reduce_max(log(vector(total)))
                f32(params[3])[row] = lse
                for s in range(splits):
                    share = exp(logs[s] - lse)
                    if share != 0:
                        for d in range(0, Dv, LANES):
                            n = Dv - d
                            part = load_n(parts + s * Dv, d, n)
                            store_n(out, d, fma(part, share, load_n(out, d, n)), n)

    return kernel
