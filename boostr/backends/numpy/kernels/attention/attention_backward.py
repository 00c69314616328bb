"""The gradient of packed attention: flash, segment by segment, from the lse of the forward pass.

An item is (part of the keys of one segment, kv head). It goes through tiles of KEYS keys, and for
each through the blocks of ROWS query rows that see some of them; a row is (token, head of the
group), so a group's sums are made where they are needed. With q scaled, per tile and block:

    s = q kᵀ; p = exp(s - lse); dp = g vᵀ; ds = p (dp - Σ g·out + g_lse) slack
    dv += pᵀ g; dk += dsᵀ q; dq += scale · ds k

slack is the derivative of the softcap. dk and dv are the item's own. dq is too where a segment has
one part; else each part has a copy, and `add_parts` adds them up in order: no sum depends on who
took which item. Work is proportional to the pairs that see each other. Source: Dao 2023.
"""

from numba import float32

from boostr.backends.numpy.kernels.attention.attention import is_plain
from boostr.backends.numpy.kernels.attention.attention_keys import (
    key_count,
    segment_of,
    shift_of,
)
from boostr.backends.numpy.kernels.products.blocks import NR, multiply, transpose_block
from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.kernels.runtime.edges import clear, load_upto, store_upto
from boostr.backends.numpy.kernels.runtime.memory import f32, float_param, i32, load, stack, store
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    absolute,
    fma,
    greater,
    inline,
    iota,
    less,
    select,
    to_f32,
    vector,
)
from boostr.backends.numpy.kernels.runtime.special import tanh
from boostr.backends.numpy.kernels.runtime.vmath import exp, reduce_add

CU_K, CU_Q, HEADS, KV_HEADS, Q, Q_STRIDE = (
    at.CU_K, at.CU_Q, at.HEADS, at.KV_HEADS, at.Q, at.Q_STRIDE
)  # fmt: skip
OUT, LSE, SCALE, SOFTCAP, ALIBI, LEFT, RIGHT = (
    at.OUT, at.LSE, at.SCALE, at.SOFTCAP, at.ALIBI, at.LEFT, at.RIGHT
)  # fmt: skip
K_ROWS, K_STRIDE, V_ROWS, V_STRIDE = at.KEYS, at.K_STRIDE, at.VALUES, at.V_STRIDE
SEGMENTS, TOKENS, KEY_TOKENS, WIDTH, V_WIDTH = (
    at.SEGMENTS, at.TOKENS, at.KEY_TOKENS, at.WIDTH, at.V_WIDTH
)  # fmt: skip
G_OUT, G_LSE, DQ, DK, DV, PART = at.G_OUT, at.G_LSE, at.DQ, at.DK, at.DV, at.PART
ROWS = 48  # of a block: whole tiles of 6 and of 12
KEYS = 96 if LANES == 16 else 48  # of a tile: whole tiles of these and whole vectors
LSE_AT, DELTA, PLACE, SLOPE = 0, ROWS, 2 * ROWS, 3 * ROWS  # what a block knows of its rows
PER_ROW = 4 * ROWS
INF, MINUS_INF = float("inf"), float("-inf")


@inline
def _parts(params, b):
    """Parts of segment b's keys: one at least, which clears its dq."""
    return max(1, (key_count(params, b) + params[PART] - 1) // params[PART])


@inline
def _place(params, part):
    """(segment, part of it) of a part of all; (-1, 0) past the last."""
    for b in range(params[SEGMENTS]):
        parts = _parts(params, b)
        if part < parts:
            return b, part
        part -= parts
    return -1, 0


@inline
def _clear_but(address, width, cu, segments, tokens):
    """Zeros the rows of tokens in no segment."""
    rows = f32(address)
    first, last = i32(cu)[0], i32(cu)[segments]
    clear(rows, first * width)
    clear(rows + last * width, (tokens - last) * width)


@inline
def _clear_outside(params):
    K, D, segments = params[KV_HEADS], params[WIDTH], params[SEGMENTS]
    keys, tokens = params[KEY_TOKENS], params[TOKENS]
    _clear_but(params[DQ], params[HEADS] * D, params[CU_Q], segments, tokens)
    _clear_but(params[DK], K * D, params[CU_K], segments, keys)
    _clear_but(params[DV], K * params[V_WIDTH], params[CU_K], segments, keys)


@inline
def _copy(source, target, width, room, factor):
    """A row of `width` elements times a factor, with zeros up to `room`."""
    whole = width - width % LANES
    for e in range(0, whole, LANES):
        store(target, e, load(source, e) * factor)
    for e in range(whole, room, LANES):
        store(target, e, load_upto(source, e, max(width - e, 0)) * factor)


@inline
def _dot(a, b, width):
    total = vector(0.0)
    whole = width - width % LANES
    for e in range(0, whole, LANES):
        total = fma(load(a, e), load(b, e), total)
    if whole < width:
        total = fma(load_upto(a, whole, width - whole), load_upto(b, whole, width - whole), total)
    return reduce_add(total)


@inline
def _up(width):
    """A width in whole tiles."""
    return (width + NR - 1) // NR * NR


@inline
def _load_rows(params, row0, count, kv, begin, shift, q, g, known, room):
    """The block's rows of scale · q and of g, and what is known of them."""
    H, D, Dv = params[HEADS], params[WIDTH], params[V_WIDTH]
    G, scale = H // params[KV_HEADS], float_param(params[SCALE])
    for r in range(count):
        t, head = (row0 + r) // G, kv * G + (row0 + r) % G
        cell = (begin + t) * H + head
        source = f32(params[Q]) + ((begin + t) * params[Q_STRIDE] + head * D)
        _copy(source, q + r * room, D, _up(D), scale)
        slope = f32(params[G_OUT]) + cell * Dv
        _copy(slope, g + r * room, Dv, _up(Dv), float32(1.0))
        lse = f32(params[LSE])[cell]
        known[LSE_AT + r] = lse if lse > MINUS_INF else float32(INF)  # no key: p is 0
        flow = _dot(slope, f32(params[OUT]) + cell * Dv, Dv)
        known[DELTA + r] = flow - f32(params[G_LSE])[cell]
        known[PLACE + r] = float32(t + shift)
        known[SLOPE + r] = f32(params[ALIBI])[head] if params[ALIBI] != 0 else float32(0.0)


@inline
def _load_keys(params, b, kv, first, count, k, kt, vt, dk, dv, room):
    """k and, turned, kt and vt of a tile; dk = dv = 0."""
    row, D, Dv = i32(params[CU_K])[b] + first, params[WIDTH], params[V_WIDTH]
    for j in range(count):
        key = params[K_ROWS] + (row + j) * params[K_STRIDE] + kv * (D * 4)
        value = params[V_ROWS] + (row + j) * params[V_STRIDE] + kv * (Dv * 4)
        _copy(f32(key), f32(k) + j * room, D, _up(D), float32(1.0))
        _copy(f32(value), f32(dv) + j * room, Dv, _up(Dv), float32(1.0))
    transpose_block(k, room * 4, kt, KEYS * 4, count, D)
    transpose_block(dv, room * 4, vt, KEYS * 4, count, Dv)
    clear(f32(dk), count * room)
    clear(f32(dv), count * room)


@inline
def _weigh(s, dp, known, count, keys):
    """s becomes p and dp becomes ds, of scores with nothing to add."""
    for r in range(count):
        lse, delta = known[LSE_AT + r], known[DELTA + r]
        for j in range(r * KEYS, r * KEYS + keys, LANES):
            p = exp(load(s, j) - lse)
            store(s, j, p)
            store(dp, j, p * (load(dp, j) - delta))


@inline
def _weigh_masked(params, s, dp, known, count, keys, first):
    """The same with softcap, slopes and masks; `first` is the position of the tile's first key."""
    softcap = float_param(params[SOFTCAP])
    left, right = float32(params[LEFT]), float32(params[RIGHT])
    for r in range(count):
        lse, delta, slope = known[LSE_AT + r], known[DELTA + r], known[SLOPE + r]
        for j in range(0, keys, LANES):
            value, slack = load(s, r * KEYS + j), vector(1.0)
            if softcap != 0:
                t = tanh(value / softcap)
                value, slack = t * softcap, 1.0 - t * t
            away = to_f32(iota()) + (float32(first + j) - known[PLACE + r])
            value = value - absolute(away) * slope
            if right >= 0:
                value = select(greater(away, right), MINUS_INF, value)
            if left >= 0:
                value = select(less(away, 0.0 - left), MINUS_INF, value)
            p = exp(value - lse)
            store(s, r * KEYS + j, p)
            store(dp, r * KEYS + j, p * (load(dp, r * KEYS + j) - delta) * slack)


@inline
def _add_rows(params, source, target, row0, count, kv, begin, room):
    """dq += scale · source, row by row."""
    H, D = params[HEADS], params[WIDTH]
    G, scale = H // params[KV_HEADS], float_param(params[SCALE])
    whole = D - D % LANES
    for r in range(count):
        head = kv * G + (row0 + r) % G
        cell = (begin + (row0 + r) // G) * H + head
        dq, row = f32(target) + cell * D, source + r * room
        for e in range(0, whole, LANES):
            store(dq, e, fma(load(row, e), scale, load(dq, e)))
        if whole < D:
            rest = fma(load_upto(row, whole, D - whole), scale, load_upto(dq, whole, D - whole))
            store_upto(dq, whole, rest, D - whole)


@inline
def _write_rows(source, target, count, width, room, stride):
    for r in range(count):
        for e in range(0, width, LANES):
            store_upto(target + r * stride, e, load(source, r * room + e), width - e)


@inline
def _row_range(params, first, last, shift, queries):
    """The tokens of a segment that see some of the keys first..last."""
    low, high = 0, queries
    if params[RIGHT] >= 0:
        low = max(low, first - params[RIGHT] - shift)
    if params[LEFT] >= 0:
        high = min(high, last + params[LEFT] - shift + 1)
    return low, high


def attention_backward(room: int):
    """Parameters as in `layout_ops.py`; heads are at most `room` wide, whole tiles."""
    row_floats, key_floats, scores = ROWS * room, KEYS * room, ROWS * KEYS
    row, score_row = 4 * room, 4 * KEYS

    def kernel(params, start, stop):
        q, g, dq = stack(row_floats), stack(row_floats), stack(row_floats)
        s, dp, known = stack(scores), stack(scores), f32(stack(PER_ROW))
        k, dk, dv = stack(key_floats), stack(key_floats), stack(key_floats)
        kt, vt = stack(key_floats), stack(key_floats)
        K, H, D, Dv = params[KV_HEADS], params[HEADS], params[WIDTH], params[V_WIDTH]
        G = H // K
        if start == 0:
            _clear_outside(params)
        for item in range(start, stop):
            b, part = _place(params, item // K)
            if b < 0:
                continue
            kv, begin = item % K, i32(params[CU_Q])[b]
            queries, all_keys = i32(params[CU_Q])[b + 1] - begin, key_count(params, b)
            shift = shift_of(params, b, all_keys)
            target = params[DQ] + part * params[TOKENS] * (H * D * 4)
            for t in range(begin, begin + queries):
                clear(f32(target) + (t * H + kv * G) * D, G * D)
            end = min((part + 1) * params[PART], all_keys)
            for first in range(part * params[PART], end, KEYS):
                m = min(KEYS, end - first)
                _load_keys(params, b, kv, first, m, k, kt, vt, dk, dv, room)
                low, high = _row_range(params, first, first + m - 1, shift, queries)
                for row0 in range(low * G, high * G, ROWS):
                    n = min(ROWS, high * G - row0)
                    _load_rows(params, row0, n, kv, begin, shift, f32(q), f32(g), known, room)
                    multiply(q, row, 4, kt, score_row, s, score_row, n, m, D, False)
                    multiply(g, row, 4, vt, score_row, dp, score_row, n, m, Dv, False)
                    lowest, highest = row0 // G + shift, (row0 + n - 1) // G + shift
                    if is_plain(params, first, first + m - 1, lowest, highest):
                        _weigh(f32(s), f32(dp), known, n, m)
                    else:
                        _weigh_masked(params, f32(s), f32(dp), known, n, m, first)
                    multiply(s, 4, score_row, g, row, dv, row, m, Dv, n, True)
                    multiply(dp, 4, score_row, q, row, dk, row, m, D, n, True)
                    multiply(dp, score_row, 4, k, row, dq, row, n, D, m, False)
                    _add_rows(params, f32(dq), target, row0, n, kv, begin, room)
                cell = (i32(params[CU_K])[b] + first) * K + kv
                _write_rows(f32(dk), f32(params[DK]) + cell * D, m, D, room, K * D)
                _write_rows(f32(dv), f32(params[DV]) + cell * Dv, m, Dv, room, K * Dv)

    return kernel


def add_parts():
    """Parameters as above; an item is a token, whose parts of dq are added to the first."""

    def kernel(params, start, stop):
        width = params[HEADS] * params[WIDTH]
        whole, plane = width - width % LANES, params[TOKENS] * width
        for t in range(start, stop):
            b, total = segment_of(params, t), f32(params[DQ]) + t * width
            for part in range(1, _parts(params, b) if b >= 0 else 1):
                more = total + part * plane
                for e in range(0, whole, LANES):
                    store(total, e, load(total, e) + load(more, e))
                for e in range(whole, width):
                    total[e] = total[e] + more[e]

    return kernel
