"""Flash attention for blocks of queries, on packed keys or a paged cache.

One item is (block of ROWS query rows of one segment, kv head). A row is (token, head of the group),
so heads that share keys share the loads. Lanes are rows: with q transposed, scores [key, row] and
sums [Dv, row] need broadcasts of k and v only, which are read where they lie, and the softmax runs
down the keys, lane by lane, without sums over lanes. Per tile of TILE keys:

    s = k qᵀ; top' = max(top, s); p = exp(s - top'); l = l e^(top - top') + Σ p;
    o = o e^(top - top') + vᵀ p           and at the end out = o / l, lse = top + log l

Registers hold KEYS x 3 vectors of s or o. Source: Dao 2023, FlashAttention-2.
"""

from numba import float32

from boostr.backends.numpy.kernels.attention.attention_keys import (
    first_key,
    key_count,
    last_key,
    list_keys,
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
    put,
    stack,
    store,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    absolute,
    add,
    fill,
    fma,
    greater,
    inline,
    less,
    maximum,
    mul,
    select,
    sub,
)
from boostr.backends.numpy.kernels.runtime.special import log, tanh
from boostr.backends.numpy.kernels.runtime.tables import load_run, pointers, spread_at, spread_run
from boostr.backends.numpy.kernels.runtime.vmath import exp

CU_Q, HEADS, KV_HEADS, Q, Q_STRIDE = at.CU_Q, at.HEADS, at.KV_HEADS, at.Q, at.Q_STRIDE
OUT, LSE, SCALE, SOFTCAP, ALIBI, SINKS = at.OUT, at.LSE, at.SCALE, at.SOFTCAP, at.ALIBI, at.SINKS
LEFT, RIGHT, SEGMENTS, TOKENS, SPLITS = at.LEFT, at.RIGHT, at.SEGMENTS, at.TOKENS, at.SPLITS
ROWS = at.VECTORS * LANES
KEYS = 8 if LANES == 16 else 4  # KEYS * 3 sums + 4 vectors fit in the 32 (16) registers
TILE = 64
LIST = 2 * TILE  # floats in the room of TILE int64
PLANE = TILE * LANES  # scores of one vector of rows
SCORES = 3 * PLANE
PER_ROW = 3 * ROWS
MINUS_INF = float("-inf")
LEAST = -1e38  # below every score, and finite: exp(-inf - LEAST) = 0 for rows without keys


@inline
def _three(x, index, plane):
    return load(x, index), load(x, index + plane), load(x, index + 2 * plane)


@inline
def _place(params, block):
    """(segment, block within it) of a block of rows; (-1, 0) past the last."""
    cu, G = i32(params[CU_Q]), params[HEADS] // params[KV_HEADS]
    for b in range(params[SEGMENTS]):
        blocks = ((cu[b + 1] - cu[b]) * G + ROWS - 1) // ROWS
        if block < blocks:
            return b, block
        block -= blocks
    return -1, 0


@inline
def _clear_outside(params, Dv):
    """out = 0, lse = -inf for the tokens in no segment."""
    cu, H = i32(params[CU_Q]), params[HEADS]
    for t in range(params[TOKENS]):
        if t < cu[0] or t >= cu[params[SEGMENTS]]:
            for h in range(H):
                f32(params[LSE])[t * H + h] = MINUS_INF
                for d in range(Dv):
                    f32(params[OUT])[(t * H + h) * Dv + d] = 0.0


@inline
def _load_queries(params, row0, row1, kv, start, shift, qt, per_row, D):
    """qt [D, ROWS] = scale * qᵀ; rows past the last repeat it. per_row: position, slope, sink."""
    G, scale = params[HEADS] // params[KV_HEADS], float_param(params[SCALE])
    for r in range(ROWS):
        row = min(row0 + r, row1 - 1)
        t, head = row // G, kv * G + row % G
        source = f32(params[Q]) + ((start + t) * params[Q_STRIDE] + head * D)
        for d in range(D):
            qt[d * ROWS + r] = source[d] * scale
        per_row[r] = float32(t + shift)
        per_row[ROWS + r] = f32(params[ALIBI])[head] if params[ALIBI] != 0 else float32(0.0)
        sink = f32(params[SINKS])[head] if params[SINKS] != 0 else float32(MINUS_INF)
        per_row[2 * ROWS + r] = sink


@inline
def _multiply(qt, keys, first, n, s, D):
    """s [3, TILE, LANES] = k qᵀ for n keys, KEYS at a time; the head begins at element `first`."""
    for j in range(0, n, KEYS):
        rows = pointers(keys, j, KEYS)
        a, b, c = fill(KEYS, 0.0), fill(KEYS, 0.0), fill(KEYS, 0.0)
        for d in range(D):
            k = spread_at(rows, first + d)
            x = _three(qt, d * ROWS, LANES)
            a, b, c = fma(k, x[0], a), fma(k, x[1], b), fma(k, x[2], c)
        put(s + j * LANES, a)
        put(s + (PLANE + j * LANES), b)
        put(s + (2 * PLANE + j * LANES), c)


@inline
def _adjust(params, s, where, n, per_row):
    """Softcap, slopes and masks on n keys' scores."""
    softcap = float_param(params[SOFTCAP])
    left, right = float32(params[LEFT]), float32(params[RIGHT])
    for plane in range(3):
        position = load(per_row, plane * LANES)
        slope = load(per_row, ROWS + plane * LANES)
        for j in range(n):
            value = load(s, plane * PLANE + j * LANES)
            if softcap != 0:
                value = tanh(value / softcap) * softcap
            away = float32(where[j]) - position
            value = value - absolute(away) * slope
            if right >= 0:
                value = select(greater(away, right), MINUS_INF, value)
            if left >= 0:
                value = select(less(away, 0.0 - left), MINUS_INF, value)
            store(s, plane * PLANE + j * LANES, value)


@inline
def _weigh(s, n, top, total):
    """s = exp(s - new top); (new top, new total, decay of what was summed before)."""
    high = top
    for j in range(n):
        high = maximum(high, _three(s, j * LANES, PLANE))
    safe = maximum(high, LEAST)
    decay = exp(sub(top, safe))
    total = mul(total, decay)
    for j in range(n):
        p = exp(sub(_three(s, j * LANES, PLANE), safe))
        store(s, j * LANES, p[0])
        store(s, PLANE + j * LANES, p[1])
        store(s, 2 * PLANE + j * LANES, p[2])
        total = add(total, p)
    return high, total, decay


@inline
def _add_values(o, values, first, n, s, decay, Dv):
    """o [3, Dv, LANES] = o * decay + vᵀ p, KEYS of Dv at a time."""
    plane = Dv * LANES
    for d in range(0, Dv - Dv % KEYS, KEYS):
        at_d = d * LANES
        a = mul(load_run(o, at_d, KEYS), decay[0])
        b = mul(load_run(o, plane + at_d, KEYS), decay[1])
        c = mul(load_run(o, 2 * plane + at_d, KEYS), decay[2])
        for j in range(n):
            v = spread_run(f32(values[j]), first + d, KEYS)
            p = _three(s, j * LANES, PLANE)
            a, b, c = fma(v, p[0], a), fma(v, p[1], b), fma(v, p[2], c)
        put(o + at_d, a)
        put(o + (plane + at_d), b)
        put(o + (2 * plane + at_d), c)
    for d in range(Dv - Dv % KEYS, Dv):
        one = mul(_three(o, d * LANES, plane), decay)
        for j in range(n):
            one = fma(_three(s, j * LANES, PLANE), f32(values[j])[first + d], one)
        for i in range(3):
            store(o, i * plane + d * LANES, one[i])


@inline
def _finish(params, o, lse, row0, row1, kv, start, Dv):
    """Writes rows row0..row1: out = o, transposed back, and lse."""
    H = params[HEADS]
    G = H // params[KV_HEADS]
    for r in range(min(ROWS, row1 - row0)):
        row = row0 + r
        cell = (start + row // G) * H + kv * G + row % G
        source = o + (r // LANES * (Dv * LANES) + r % LANES)
        out = f32(params[OUT]) + cell * Dv
        for d in range(Dv):
            out[d] = source[d * LANES]
        f32(params[LSE])[cell] = lse[r]


@inline
def _normalise(o, lse, top, total, Dv):
    """o = o / total (0 where that is 0) and lse = top + log(total)."""
    for i in range(3):
        some = greater(total[i], 0.0)
        safe = select(some, total[i], 1.0)
        share = 1.0 / safe
        store(lse, i * LANES, select(some, top[i] + log(safe), MINUS_INF))
        for d in range(Dv):
            at_d = (i * Dv + d) * LANES
            store(o, at_d, load(o, at_d) * share)


@inline
def is_plain(params, first, last, lowest, highest):
    """Whether queries at lowest..highest see all keys first..last, with nothing to add."""
    if float_param(params[SOFTCAP]) != 0 or params[ALIBI] != 0:
        return False
    if params[RIGHT] >= 0 and last - lowest > params[RIGHT]:
        return False
    return params[LEFT] < 0 or highest - first <= params[LEFT]


def attention(D: int, Dv: int, kv: str):
    """Parameters as in `layout_ops.py`; SPLITS is the number of blocks, taken last to first.

    kv: "float" or the form that keys and values have.
    """
    queries, sums = D * ROWS, Dv * ROWS
    tile, wide = reader(kv, TILE), room_of(kv, TILE, D + Dv)

    def kernel(params, start, stop):
        qt, o, s = f32(stack(queries)), f32(stack(sums)), f32(stack(SCORES))
        per_row, lse = f32(stack(PER_ROW)), f32(stack(ROWS))
        keys, values, where = i64(stack(LIST)), i64(stack(LIST)), i64(stack(LIST))
        floats = stack(wide)
        K = params[KV_HEADS]
        G = params[HEADS] // K
        if start == 0:
            _clear_outside(params, Dv)
        for item in range(start, stop):
            b, block = _place(params, params[SPLITS] - 1 - item // K)
            if b < 0:
                continue
            kv, begin = item % K, i32(params[CU_Q])[b]
            row0, row1 = block * ROWS, (i32(params[CU_Q])[b + 1] - begin) * G
            count = key_count(params, b)
            shift = shift_of(params, b, count)
            lowest, highest = row0 // G + shift, (min(row0 + ROWS, row1) - 1) // G + shift
            _load_queries(params, row0, row1, kv, begin, shift, qt, per_row, D)
            top = _three(per_row, 2 * ROWS, LANES)
            total = exp(sub(top, maximum(top, LEAST)))  # 1 where there is a sink, else 0
            for d in range(0, sums, LANES):
                store(o, d, fill(1, 0.0)[0])
            low, high = first_key(params, count, lowest), last_key(params, count, highest)
            while low < high:
                last = min(low + TILE, high)
                n = list_keys(params, b, low, last, keys, values, where)
                for j in range(n, (n + KEYS - 1) // KEYS * KEYS):
                    keys[j] = keys[0]
                k_rows, v_rows, k_first, v_first = tile(params, keys, values, n, kv, floats)
                _multiply(qt, k_rows, k_first, n, s, D)
                if not is_plain(params, low, last - 1, lowest, highest):
                    _adjust(params, s, where, n, per_row)
                top, total, decay = _weigh(s, n, top, total)
                _add_values(o, v_rows, v_first, n, s, decay, Dv)
                low += TILE
            _normalise(o, lse, top, total, Dv)
            _finish(params, o, lse, row0, row1, kv, begin, Dv)

    return kernel
