"""Slots of tokens in a paged cache, and writing keys and values to them; one token an item."""

from boostr.backends.numpy.kernels.attention.packed import WRITERS
from boostr.backends.numpy.kernels.runtime.memory import f32, i32, load, load_n, store, store_n
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline


def slot_mapping():
    """params: positions, sequence ids, block table, slots, columns, block size.

    slot = table[sequence, position // size % columns] * size + position % size; -1 for no block.
    """

    def kernel(params, start, stop):
        positions, sequences, slots = i32(params[0]), i32(params[1]), i32(params[3])
        columns, size = params[4], params[5]
        for t in range(start, stop):
            position = positions[t]
            column = position // size % columns
            block = i32(params[2])[sequences[t] * columns + column]
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


def advance():
    """params: ids, chosen, their count, counters, then address and size of each counter."""

    def kernel(params, start, stop):
        ids, chosen = i32(params[0]), i32(params[1])
        for b in range(params[2]):
            ids[b] = chosen[b]
        for c in range(params[3]):
            counter = i32(params[4 + 2 * c])
            for i in range(params[5 + 2 * c]):
                counter[i] += 1

    return kernel
