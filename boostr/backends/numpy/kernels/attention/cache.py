"""Slots of tokens in a paged cache, and writing keys and values to them; one token an item."""

from boostr.backends.numpy.kernels.attention.packed import WRITERS
from boostr.backends.numpy.kernels.runtime.memory import f32, i32, load, load_n, store, store_n
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline


def slot_mapping():
    """params: positions, sequence ids, block table, slots, columns, block size.

    slot = table[sequence, position // size % columns] * size + position % size; -1 for no block,
    and for no sequence (negative).
    """

    def kernel(params, start, stop):
        positions, sequences, slots = i32(params[0]), i32(params[1]), i32(params[3])
        columns, size = params[4], params[5]
        for t in range(start, stop):
            position, sequence, block = positions[t], sequences[t], -1
            if sequence >= 0:
                block = i32(params[2])[sequence * columns + position // size % columns]
            slots[t] = block * size + position % size if block >= 0 else -1

    return kernel


@inline
def _copy(source, target, count):
    whole = count - count % LANES
    for i in range(0, whole, LANES):
        store(target, i, load(source, i))
    if whole < count:
        store_n(target, whole, load_n(source, whole, count - whole), count - whole)


def kv_write():
    """params: k, stride, v, stride, k cache, v cache, slots, K·D, K·Dv, slots of the cache."""

    def kernel(params, start, stop):
        slots, wide_k, wide_v = i32(params[6]), params[7], params[8]
        for t in range(start, stop):
            slot = slots[t]
            if slot >= 0 and slot < params[9]:
                _copy(f32(params[0]) + t * params[1], f32(params[4]) + slot * wide_k, wide_k)
                _copy(f32(params[2]) + t * params[3], f32(params[5]) + slot * wide_v, wide_v)

    return kernel


def kv_pack(kv: str):
    """params: k, stride, v, stride, the planes of both caches (codes, scales), slots, K, D, Dv,
    slots of the caches; kv: their form."""
    write = WRITERS[kv]

    def kernel(params, start, stop):
        slots, K, D, Dv = i32(params[8]), params[9], params[10], params[11]
        for t in range(start, stop):
            slot = slots[t]
            if slot >= 0 and slot < params[12]:
                k, v = f32(params[0]) + t * params[1], f32(params[2]) + t * params[3]
                for h in range(K):
                    write(k + h * D, params[4], params[5], slot * K + h, D)
                    write(v + h * Dv, params[6], params[7], slot * K + h, Dv)

    return kernel


IDS, POSITIONS, LENGTHS, OWNERS, DRAWS, LIMITS, ENDS, FIELDS = 0, 1, 2, 3, 4, 5, 6, 14


def advance_rows():
    """params: state [F, R], chosen, places or 0, R. An item is a place; see `ops/rows.py`."""

    def kernel(params, start, stop):
        chosen, R = i32(params[1]), params[3]
        for b in range(start, stop):
            r, token = b, chosen[b]
            if params[2] != 0:
                r = i32(params[2])[b]
            if r >= 0 and r < R and i32(params[0])[OWNERS * R + r] >= 0:
                state = i32(params[0]) + r
                position = state[POSITIONS * R] + 1
                ended = token < 0 or position >= state[LIMITS * R]
                for field in range(ENDS, FIELDS):
                    ended = ended or state[field * R] == token
                state[IDS * R], state[POSITIONS * R] = token, position
                state[LENGTHS * R] = 0 if ended else state[LENGTHS * R] + 1
                state[DRAWS * R] += 1
                if ended:
                    state[OWNERS * R] = -1

    return kernel
