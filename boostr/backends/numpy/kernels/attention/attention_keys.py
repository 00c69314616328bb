"""Which keys a query sees and where they lie: shared by the attention kernels.

Lengths, offsets and the block table are read here, on the device: a program replays the launch
while they change. Positions are those of `boostr/ops/attention.py`.
"""

from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.kernels.runtime.memory import i32
from boostr.backends.numpy.kernels.runtime.simd import inline

BLOCK_SIZE, BLOCKS, BOTTOM_RIGHT = at.BLOCK_SIZE, at.BLOCKS, at.BOTTOM_RIGHT
COLUMNS, CU_K, CU_Q, KEYS, KV_LENS = at.COLUMNS, at.CU_K, at.CU_Q, at.KEYS, at.KV_LENS
K_STRIDE, LEFT, RIGHT, SEGMENTS, TABLE = at.K_STRIDE, at.LEFT, at.RIGHT, at.SEGMENTS, at.TABLE
VALUES, V_STRIDE = at.VALUES, at.V_STRIDE


@inline
def segment_of(params, t):
    """The segment of query token t, -1 if it is in none."""
    cu, low, high = i32(params[CU_Q]), 0, params[SEGMENTS]
    if t < cu[0] or t >= cu[high]:
        return -1
    while high - low > 1:  # cu[low] <= t < cu[high]
        middle = (low + high) // 2
        if cu[middle] <= t:
            low = middle
        else:
            high = middle
    return low


@inline
def key_count(params, b):
    """Keys of segment b."""
    if params[CU_K] != 0:
        cu = i32(params[CU_K])
        return cu[b + 1] - cu[b]
    return i32(params[KV_LENS])[b]


@inline
def shift_of(params, b, count):
    """Position of the segment's first query."""
    if params[BOTTOM_RIGHT] == 0:
        return 0
    cu = i32(params[CU_Q])
    return count - (cu[b + 1] - cu[b])


@inline
def first_key(params, count, position):
    """The first key that a query at `position` sees."""
    low = 0
    if params[LEFT] >= 0:
        low = max(low, position - params[LEFT])
    if params[CU_K] == 0:  # older rows of the ring are overwritten
        low = max(low, count - params[COLUMNS] * params[BLOCK_SIZE])
    return low


@inline
def last_key(params, count, position):
    """One past the last key that a query at `position` sees."""
    if params[RIGHT] >= 0:
        return min(count, position + params[RIGHT] + 1)
    return count


@inline
def list_keys(params, b, first, last, keys, values, places):
    """Addresses (or numbers) of keys first..last of segment b, of their values, their positions.

    Keys in no block (a negative entry of the table) are left out. Returns how many there are.
    """
    paged, size, columns = params[CU_K] == 0, params[BLOCK_SIZE], params[COLUMNS]
    column, offset, n, position = 0, 0, 0, first
    if paged:
        column, offset = (first // size) % columns, first % size
    while position < last:
        run, row = last - position, -1
        if paged:
            run = min(size - offset, run)
            block = i32(params[TABLE])[b * columns + column]
            if block < params[BLOCKS]:
                row = block * size + offset
            offset, column = 0, column + 1
            if column == columns:
                column = 0
        else:
            row = i32(params[CU_K])[b] + position
        if row >= 0:
            key = params[KEYS] + row * params[K_STRIDE]
            value = params[VALUES] + row * params[V_STRIDE]
            for j in range(run):
                keys[n], values[n], places[n] = key, value, position + j
                key += params[K_STRIDE]
                value += params[V_STRIDE]
                n += 1
        position += run
    return n
