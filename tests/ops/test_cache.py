"""Writing to a paged cache, and where positions lie in it."""

import numpy as np
import oracles
import pytest
from draws import normal, refused, strided, tensors

from boostr import Tensor, zeros
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.ops.cache import kv_write, slot_mapping


def i32(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_kv_write(stored, backend, rng):
    k, v = normal(rng, (5, 2, 8)), normal(rng, (5, 2, 6))
    slots = i32(7, -1, 0, 11, 3)
    caches = [normal(rng, (4, 3, 2, D), stored) for D in (8, 6)]
    want = [
        oracles.kv_write(c, x.astype(c.dtype), slots) for c, x in zip(caches, (k, v), strict=True)
    ]
    held = tensors(backend, *caches)
    assert kv_write(*tensors(backend, strided(k), v), *held, Tensor(slots, backend=backend)) is None
    for cache, truth in zip(held, want, strict=True):
        np.testing.assert_array_equal(cache.numpy(), truth)


def test_nothing_to_write(backend, rng):
    cache = normal(rng, (2, 3, 1, 4))
    held = tensors(backend, cache.copy(), cache.copy())
    for slots in (i32(), i32(-1, -5)):
        new = normal(rng, (len(slots), 1, 4))
        kv_write(*tensors(backend, new, new), *held, Tensor(slots, backend=backend))
    np.testing.assert_array_equal(held[0].numpy(), cache)


@pytest.mark.parametrize("bs", [1, 3, 16])
def test_slot_mapping(bs, backend):
    table = i32([5, 2, 9], [1, -1, 4])
    positions = i32(0, bs, 3 * bs - 1, 3 * bs, 7 * bs, bs, 0, bs)
    rows = i32(0, 0, 0, 0, 1, 1, -1, -7)
    got = slot_mapping(*tensors(backend, positions, rows, table), bs)
    want = []
    for p, b in zip(positions, rows, strict=True):
        block = table[b, p // bs % 3] if b >= 0 else -1
        want.append(block * bs + p % bs if block >= 0 else -1)
    assert got.tolist() == want and got.dtype == np.int32


def test_refuses(rng):
    k, v = tensors("numpy", normal(rng, (2, 1, 4)), normal(rng, (2, 1, 4)))
    caches = [zeros((3, 2, 1, 4), backend="numpy") for _ in range(2)]
    slots, table = tensors("numpy", i32(0, 1), i32([0, 1]))
    with refused(DTypeError, "kv_write", "int32", "float32"):
        kv_write(k, v, *caches, slots.to("float32"))
    with refused(DTypeError, "kv_write", "[T]", "[2, 1]"):
        kv_write(k, v, *caches, slots.reshape(2, 1))
    with refused(ShapeError, "kv_write", "k must be", "[2, 1, 3]"):
        kv_write(k[:, :, :3], v, *caches, slots)
    with refused(ShapeError, "kv_write", "v must be", "[NB, bs, K, D]", "[2, 1, 4]"):
        kv_write(k, v, caches[0], caches[1][0], slots)
    with refused(ShapeError, "kv_write", "T = 1"):
        kv_write(k, v, *caches, slots[:1])
    with refused(BackendError, "kv_write", "k_cache", "contiguous"):
        wide = zeros((3, 2, 1, 8), backend="numpy")
        kv_write(k, v, wide[..., :4], caches[1], slots)
    with refused(ShapeError, "slot_mapping", "positions", "int32 [T]", "float32[2]"):
        slot_mapping(slots.to("float32"), slots, table, 2)
    with refused(ShapeError, "slot_mapping", "sequence_ids", "int32[1]"):
        slot_mapping(slots, slots[:1], table, 2)
    with refused(ShapeError, "slot_mapping", "[B, max_blocks]", "int32[2]"):
        slot_mapping(slots, slots, table[0], 2)
