"""GPU kernels that read tables and write caches, against the oracle, strictly."""

import numpy as np
import oracles
import oracles_rows
import packed
import pytest
from draws import normal, tensors, view
from ops.test_rows import draw
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.ops.cache import kv_write, slot_mapping
from boostr.ops.embedding import _embedding_backward, embedding
from boostr.ops.quant import dequantize
from boostr.ops.rows import advance_rows

FLOATS = ("float32", "float16", "bfloat16")
floats = pytest.mark.parametrize("dtype", FLOATS)


# of ids
INTEGERS = {"cupy": (np.int32, np.int64), "wgpu": (np.int32, np.uint8)}


# -- embedding -----------------------------------------------------------------------------------
@floats
@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("E", (1, 33, 36, 64, 2048, 5000))
def test_embedding(E, stored, dtype, gpu, rng):
    w, ids = normal(rng, (97, E), stored), rng.integers(0, 97, 70)
    ids[:2] = 96, 0
    for kind in INTEGERS[gpu.name]:
        got = embedding(*tensors(gpu, ids.astype(kind), w), dtype=dtype).numpy()
        np.testing.assert_array_equal(got, w[ids].astype(dtypes.parse(dtype)))


@floats
@pytest.mark.parametrize("scheme", packed.FORMS)
@pytest.mark.parametrize("K", (32, 99, 100, 160, 2048))
def test_packed_weights(K, scheme, dtype, gpu, rng):
    w, want = packed.draw(gpu, rng, scheme, 97, packed.fitted(scheme, K))
    ids = rng.integers(0, 97, 40).astype(np.int32)
    got = embedding(Tensor(ids, backend=gpu), w, dtype)
    assert_close(got.numpy(), want[ids], dtype=dtype, reduce=1, scale=0.1)
    assert_close(dequantize(w, dtype).numpy(), want, dtype=dtype, reduce=1, scale=0.1)


def check_embedding_gradient(backend, T, V, E, dtype, stored, kind, rng, c=None):
    """One id that few tokens have, that many have, and that more have than can be sorted."""
    g, ids = normal(rng, (T, E), dtype), rng.integers(0, V, T).astype(kind)
    ids[: T // 3] = V // 2
    want = oracles_rows.embedding_backward(g, ids, V)
    many = np.bincount(ids, minlength=V)[:, None] + 1
    tg, ti = tensors(backend, g, ids)
    runs = [_embedding_backward(tg, ti, V, dtypes.parse(stored)).numpy() for _ in range(2)]
    # 8 accumulators, each of a share of the tokens
    assert_close(runs[0], want, dtype=stored, reduce=1, scale=np.sqrt(many), c=c)
    np.testing.assert_array_equal(*runs)


TOKENS = ((0, 5, 8), (1, 1, 1), (50, 7, 33), (300, 3, 64), (1300, 90, 12), (3000, 2, 264),
          (5000, 3, 64), (4097, 5000, 576), (2000, 1, 2056))  # fmt: skip


@floats
@pytest.mark.parametrize(("T", "V", "E"), TOKENS)
def test_embedding_gradient(T, V, E, dtype, gpu, rng):
    check_embedding_gradient(gpu, T, V, E, dtype, dtype, np.int32, rng)
    if gpu.name == "cupy":
        check_embedding_gradient(gpu, T, V, E, dtype, "float32", np.int64, rng)


@pytest.mark.parametrize(("T", "V", "E"), TOKENS[:6])
def test_embedding_gradient_on_any_gpu(T, V, E, any_gpu, rng):
    check_embedding_gradient(any_gpu, T, V, E, "bfloat16", "bfloat16", np.int32, rng)


# -- cache ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("stored", FLOATS)
@floats
@pytest.mark.parametrize(("K", "D", "Dv"), ((2, 64, 64), (1, 5, 3), (3, 4, 2), (8, 128, 128),
                                           (3, 80, 48)))  # fmt: skip
def test_kv_write(K, D, Dv, dtype, stored, gpu, rng):
    k, v = normal(rng, (70, K * D), dtype), normal(rng, (70, K * Dv), dtype)
    slots = rng.permutation(16 * 7).astype(np.int32)[:70]
    slots[[3, 9]] = -1
    slots[5] = 16 * 7  # behind the last
    caches = [normal(rng, (7, 16, K, n), stored) for n in (D, Dv)]
    held = tensors(gpu, *caches)
    parts = [view(gpu, k).reshape(70, K, D), view(gpu, v, 3).reshape(70, K, Dv)]
    kv_write(*parts, *held, Tensor(slots, backend=gpu))
    slots[5] = -1
    for cache, before, x, n in zip(held, caches, (k, v), (D, Dv), strict=True):
        want = oracles.kv_write(before, x.reshape(70, K, n).astype(before.dtype), slots)
        np.testing.assert_array_equal(cache.numpy(), want)


@pytest.mark.parametrize("D", (3, 4, 6))
def test_caches_in_one_buffer(D, gpu, rng):
    """Keys and values of one allocation, at places that are no multiple of a run."""
    room = normal(rng, (2, 3, 2, 1, D), "bfloat16")
    both = Tensor(room, backend=gpu)
    k, v = normal(rng, (2, 1, D), "bfloat16"), normal(rng, (2, 1, D), "bfloat16")
    slots = np.array([5, 2], np.int32)
    kv_write(*tensors(gpu, k, v), both[0].detach(), both[1].detach(), Tensor(slots, backend=gpu))
    room.reshape(2, 6, 1, D)[0, slots] = k
    room.reshape(2, 6, 1, D)[1, slots] = v
    np.testing.assert_array_equal(both.numpy(), room)


@pytest.mark.parametrize("first", [0, 3])
def test_rows_of_state(first, gpu, rng):
    """A state that begins within a buffer; places in any order."""
    state = draw(rng, 700)
    room = np.concatenate([rng.integers(0, 9, (first, 700)).astype(np.int32), state])
    held, chosen = Tensor(room, backend=gpu)[first:], rng.integers(-1, 50, 650).astype(np.int32)
    for places in (None, rng.permutation(700)[:650].astype(np.int32)):
        ids, index = tensors(gpu, chosen, places)
        advance_rows(held, ids, index)
        state = oracles_rows.advance_rows(state, chosen, places)
        np.testing.assert_array_equal(held.numpy(), state)


def test_rows_of_state_in_one_buffer(gpu, rng):
    """The buffer of the state, which is bound to be written, has what is read as well."""
    state, chosen = draw(rng, 70), rng.integers(-1, 50, 70).astype(np.int32)
    places = rng.permutation(70).astype(np.int32)
    F = len(state)
    room = Tensor(np.concatenate([state, [chosen, places]]), backend=gpu)
    for with_places in (False, True):
        index = room[F + 1].detach() if with_places else None
        advance_rows(room[:F].detach(), room[F].detach(), index)
        state = oracles_rows.advance_rows(state, chosen, places if with_places else None)
        np.testing.assert_array_equal(room.numpy(), np.concatenate([state, [chosen, places]]))


def test_slot_mapping(gpu):
    table = np.array([[5, 2, 9], [1, -1, 4]], np.int32)
    positions = np.arange(-40, 860, dtype=np.int32)
    rows = np.arange(900, dtype=np.int32) % 3 - 1
    got = slot_mapping(*tensors(gpu, positions, rows, table), 16).numpy()
    block = np.where(rows < 0, -1, table[rows, positions // 16 % 3])
    np.testing.assert_array_equal(got, np.where(block < 0, -1, block * 16 + positions % 16))
