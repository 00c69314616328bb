"""Choosing tokens from rows of logits [V], as `boostr/ops/sampling.py` defines it; a row an item.

`sample` orders no more candidates than the draw needs. One pass over the row finds the weight of
all and of those within a few distances of the largest logit; the smallest distance that must hold
the draw gives the candidates, which are put into BUCKETS by distance, and of these only as many as
the walk along the cumulated weights reaches are sorted.
"""

from numba import float32, float64

from boostr.backends.numpy.kernels.rows.activation import largest
from boostr.backends.numpy.kernels.runtime.layout_ops import PENALTY_CHUNK
from boostr.backends.numpy.kernels.runtime.memory import (
    f32,
    i32,
    load,
    load_n,
    stack,
    store,
    store_n,
    u8,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    add,
    equal,
    fill,
    greater,
    inline,
    iota,
    less,
    maximum,
    minimum,
    select,
    to_f32,
    to_i32,
    vector,
)
from boostr.backends.numpy.kernels.runtime.vmath import exp, reduce_add, reduce_max, reduce_min

BUCKETS = 2048
LEVELS = (2.0, 4.0, 6.0, 9.0, 13.0)  # values of (x0 - x) / temperature
ENDS = BUCKETS + LANES  # one more bucket for those that are no candidates
FARTHEST = 90.0  # weights below e**-90 are 0
INFINITE = float("inf")
MOST = float32(3.4028235e38)
NONE = 0x7FFFFFFF


@inline
def first_equal(x, V, value):
    """The first index of `value`, NONE if it is not there."""
    found = vector(NONE)
    whole = V - V % LANES
    for e in range(0, whole, LANES):
        found = minimum(found, select(equal(load(x, e), value), iota() + e, NONE))
    if whole < V:
        n = V - whole
        index = select(less(iota(), n), iota() + whole, NONE)
        found = minimum(found, select(equal(load_n(x, whole, n), value), index, NONE))
    return reduce_min(found)


@inline
def has_largest(x, V, top):
    """Whether `top`, the largest of x, is a finite number, and no element is nan."""
    wrong = vector(0.0)
    for e in range(0, V, LANES):
        value = load_n(x, e, V - e)
        wrong = maximum(wrong, select(equal(value, value), vector(0.0), 1.0))
    return reduce_max(wrong) == 0 and top > -INFINITE and top < INFINITE


def argmax():
    """The first index of the largest of a row. params: x, y, V, inner, stride, whether a row that
    has no finite largest gives -1."""

    def kernel(params, start, stop):
        V = params[2]
        for row in range(start, stop):
            x = f32(params[0]) + ((row // params[3]) * params[4] + row % params[3] * V)
            top = largest(x, V)
            best = first_equal(x, V, top)
            best = best if best < NONE else 0
            i32(params[1])[row] = -1 if params[5] != 0 and not has_largest(x, V, top) else best

    return kernel


def penalize():
    """One chunk of PENALTY_CHUNK logits of a row is an item.

    params: logits, inner, stride, seen, counts, repetition, presence, frequency, y, V, chunks of a
    row.
    """

    def kernel(params, start, stop):
        V, chunks = params[9], params[10]
        for item in range(start, stop):
            row, first = item // chunks, item % chunks * PENALTY_CHUNK
            last = min(V, first + PENALTY_CHUNK)
            x = f32(params[0]) + ((row // params[1]) * params[2] + row % params[1] * V)
            seen, counts = u8(params[3]) + row * V, i32(params[4]) + row * V
            repetition, presence = f32(params[5])[row], f32(params[6])[row]
            frequency, y = f32(params[7])[row], f32(params[8]) + row * V
            for e in range(first, last, LANES):
                n = last - e
                value = load_n(x, e, n)
                worse = select(greater(value, 0.0), value / repetition, value * repetition)
                value = select(equal(load_n(seen, e, n), 0.0), value, worse)
                count = to_f32(load_n(counts, e, n))
                value = value - select(greater(count, 0.0), presence, 0.0) - count * frequency
                store_n(y, e, value, n)

    return kernel


def add_bias():
    """x[b, ids[b, n]] += values[b, n]. params: x, ids, values, V, N."""

    def kernel(params, start, stop):
        V, N = params[3], params[4]
        for row in range(start, stop):
            x = f32(params[0]) + row * V
            for i in range(row * N, row * N + N):
                token = i32(params[1])[i]
                if token >= 0 and token < V:
                    x[token] = x[token] + f32(params[2])[i]

    return kernel


def record_tokens():
    """seen[b, ids[b]] = 1, counts[b, ids[b]] += 1. params: ids, seen, counts, V."""

    def kernel(params, start, stop):
        V = params[3]
        for row in range(start, stop):
            token = i32(params[0])[row]
            if token >= 0 and token < V:
                seen, counts = u8(params[1]), i32(params[2])
                seen[row * V + token] = 1
                counts[row * V + token] = counts[row * V + token] + 1

    return kernel


@inline
def _uniform(seeds, counter):
    """24 random bits in [0, 1): word 0 of Philox4x32-10 of (counter, 0, 0, 0)."""
    word = 0xFFFFFFFF
    k0, k1 = seeds[0] & word, seeds[1] & word
    a, b, c, d = counter & word, 0, 0, 0
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # the low 64 bits, whatever their sign
        a, b, c, d = (q >> 32 & word) ^ b ^ k0, q & word, (p >> 32 & word) ^ d ^ k1, p & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return float64(a >> 8) * 2.0**-24


@inline
def _distances(x, e, V, top, heat):
    """(x - top) * heat of LANES elements, -inf past the row."""
    z = (load_n(x, e, V - e) - top) * heat
    return select(less(iota(), V - e), z, 0.0 - INFINITE)


@inline
def _within(z, w, level):
    return select(less(z, 0.0 - level), 0.0, w)


@inline
def _all_within(z, w):
    """w for each of LEVELS that z is within, else 0."""
    return (
        _within(z, w, LEVELS[0]), _within(z, w, LEVELS[1]), _within(z, w, LEVELS[2]),
        _within(z, w, LEVELS[3]), _within(z, w, LEVELS[4]),
    )  # fmt: skip


@inline
def _survey(x, V, top, heat, stats):
    """stats: weight of all, distance of the farthest; weight, count and distance of each level."""
    total, far = vector(0.0), vector(0.0)
    masses, counts = fill(5, 0.0), fill(5, 0.0)
    for e in range(0, V, LANES):
        z = _distances(x, e, V, top, heat)
        w = exp(z)
        total = total + w
        far = minimum(far, maximum(z, 0.0 - FARTHEST))
        masses = add(masses, _all_within(z, w))
        counts = add(counts, _all_within(z, vector(1.0)))
    stats[0], stats[1] = reduce_add(total), 0.0 - reduce_min(far)
    mass, count = reduce_add(masses), reduce_add(counts)
    for i in range(5):
        stats[2 + i], stats[7 + i], stats[12 + i] = mass[i], count[i], float32(LEVELS[i])


@inline
def _reach(stats, k, V, top_p, min_p, target):
    """The smallest distance within which the draw must be.

    Sums differ by rounding from those of the walk, hence the margins.
    """
    nucleus = top_p * stats[0] if top_p < 1 else float32(INFINITE)
    free, reach = k == V and min_p <= 0 and top_p >= 1, stats[1]
    for i in range(4, -1, -1):
        level, enough = stats[12 + i], stats[7 + i] >= k
        enough = enough or (k == V and stats[2 + i] > nucleus * 1.0001)
        enough = enough or ((k == V or top_p >= 1) and exp(0.0 - level) < min_p * 0.999)
        enough = enough or (free and stats[2 + i] > target * 1.0001)
        if enough:
            reach = min(reach, level)
    return max(reach, float32(1e-6))


@inline
def _sort_into_buckets(x, V, top, heat, reach, everything, ends, ids):
    """ids by bucket, within a bucket by id; ends[b] is one past the last of bucket b. How many.

    Without a branch for each element: those too far are put into bucket BUCKETS.
    """
    scale, bucket = float32(BUCKETS) / reach, i32(stack(LANES))
    least = 0.0 - INFINITE if everything else 0.0 - reach
    last, none = vector(float32(BUCKETS - 1)), vector(float32(BUCKETS))
    for b in range(BUCKETS + 1):
        ends[b] = 0
    for turn in range(2):
        for e in range(0, V, LANES):
            z = _distances(x, e, V, top, heat)
            if reduce_max(z) >= least:
                place = minimum(maximum(0.0 - z * scale, 0.0), last)
                store(bucket, 0, to_i32(select(less(z, least), none, place)))
                for i in range(e, min(e + LANES, V)):
                    b = bucket[i - e]
                    if turn == 1:
                        ids[ends[b]] = i
                    ends[b] = ends[b] + 1
        if turn == 0:
            before = 0
            for b in range(BUCKETS + 1):
                count = ends[b]
                ends[b] = before
                before += count
    return ends[BUCKETS - 1]


@inline
def _sort(x, ids, first, last):
    """ids[first:last] by falling x, ties by rising id. Shell's sort, Gonnet's gaps."""
    gap = last - first
    while gap > 1:
        gap = 1 if gap < 5 else (5 * gap - 1) // 11
        for i in range(first + gap, last):
            token = ids[i]
            j = i - gap
            while j >= first:
                other = ids[j]
                if x[other] > x[token] or (x[other] == x[token] and other < token):
                    break
                ids[j + gap] = other
                j -= gap
            ids[j + gap] = token


@inline
def _draw(x, top, heat, ids, ends, count, total, limits, u):
    """The token drawn from `count` candidates. limits: k, top_p, min_p, whether k counts.

    Three walks along the cumulated weights: to the k-th candidate, to the end of what is kept, to
    the drawn one. A bucket is sorted when a walk first comes to it.
    """
    k, top_p, min_p, counted = limits
    done, bucket, token = 0, 0, ids[0]
    nucleus, goal, floor = INFINITE, INFINITE, float32(-1.0)
    for walk in range(3):
        if walk == 0 and not counted:
            continue
        if walk == 1:
            if top_p >= 1 and min_p <= 0:
                continue
            floor = min_p
            if top_p < 1:
                nucleus = float64(float32(total) * top_p)
        if walk == 2:
            goal = float64(float32(u) * float32(total))  # rounded as the composite rounds
        summed, i = 0.0, 0
        while i < min(k, count):
            if i == done:
                while ends[bucket] <= done:
                    bucket += 1
                _sort(x, ids, done, ends[bucket])
                done = ends[bucket]
            w = exp((x[ids[i]] - top) * heat)
            if i > 0 and (summed >= nucleus or w < floor):
                break
            summed += w
            token = ids[i]
            i += 1
            if summed > goal:
                break
        total = summed
    return token


def sample():
    """params: logits, inner, stride, V, temperature, top_k, top_p, min_p, seeds, counters, scratch
    int32 [B, V], ids."""

    def kernel(params, start, stop):
        V = params[3]
        ends, stats = i32(stack(ENDS)), f32(stack(17))
        for row in range(start, stop):
            x = f32(params[0]) + ((row // params[1]) * params[2] + row % params[1] * V)
            top, out = largest(x, V), i32(params[11])
            temperature = f32(params[4])[row]
            if not has_largest(x, V, top):
                out[row] = -1
                continue
            if not temperature > 0:  # nan is none either
                out[row] = first_equal(x, V, top)
                continue
            heat = min(float32(1.0) / temperature, MOST)  # infinite, it would make 0 a nan
            ids = i32(params[10]) + row * V
            k, top_p, min_p = i32(params[5])[row], f32(params[6])[row], f32(params[7])[row]
            k = k if k > 0 and k < V else V
            u = _uniform(i32(params[8]) + row * 2, i32(params[9])[row])
            _survey(x, V, top, heat, stats)
            total = float64(stats[0])
            reach = _reach(stats, k, V, top_p, min_p, u * total)
            count = _sort_into_buckets(x, V, top, heat, reach, reach >= stats[1], ends, ids)
            limits = (k, top_p, min_p, k < V)
            out[row] = _draw(x, top, heat, ids, ends, count, total, limits, u)

    return kernel
