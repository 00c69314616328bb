"""CUDA kernels that read tables, caches and packed weights, against the oracle, strictly."""

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import normal, tensors, view
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.ops.cache import advance, kv_write, slot_mapping
from boostr.ops.embedding import _embedding_backward, embedding
from boostr.ops.quant import dequantize, quantize, quantize_rows
from boostr.quant.scheme import QUANTIZABLE, SCHEMES, QuantizedTensor

FLOATS = ("float32", "float16", "bfloat16")
floats = pytest.mark.parametrize("dtype", FLOATS)


# -- embedding -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("E", (1, 33, 64, 2048, 5000))
def test_embedding(E, stored, dtype, cupy_backend, rng):
    w, ids = normal(rng, (97, E), stored), rng.integers(0, 97, 70)
    for kind in (np.int32, np.int64):
        got = embedding(*tensors(cupy_backend, ids.astype(kind), w), dtype=dtype).numpy()
        np.testing.assert_array_equal(got, w[ids].astype(dtypes.parse(dtype)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("K", (32, 100, 2048))
def test_packed_weights(K, scheme, dtype, cupy_backend, rng):
    if SCHEMES[scheme].is_block:
        K = -(-K // 32) * 32
        raw = rng.integers(0, 60, (97, K // 32 * SCHEMES[scheme].block_bytes)).astype(np.uint8)
        parts = {"blocks": Tensor(raw, backend=cupy_backend)}
        w = QuantizedTensor(SCHEMES[scheme], (97, K), parts)
        want = getattr(oracles, f"dequantize_{scheme}")(raw)
    else:
        x, group = normal(rng, (97, K)), SCHEMES[scheme].group_size or None
        w = quantize(Tensor(x, backend=cupy_backend), scheme)
        want = oracles.dequantize_int8(*oracles.quantize_int8(x, group), group)
    ids = rng.integers(0, 97, 40).astype(np.int32)
    got = embedding(Tensor(ids, backend=cupy_backend), w, dtype)
    assert_close(got.numpy(), want[ids], dtype=dtype, reduce=1, scale=0.1)
    assert_close(dequantize(w, dtype).numpy(), want, dtype=dtype, reduce=1, scale=0.1)


@floats
@pytest.mark.parametrize(("T", "V", "E"), ((0, 5, 8), (1, 1, 1), (50, 7, 33), (5000, 3, 64),
                                           (4097, 5000, 576), (2000, 1, 2056)))  # fmt: skip
def test_embedding_gradient(T, V, E, dtype, cupy_backend, rng):
    g, ids = normal(rng, (T, E), dtype), rng.integers(0, V, T)
    ids[: T // 3] = V // 2  # one id that many tokens have
    want = oracles_rows.embedding_backward(g, ids, V)
    many = np.bincount(ids, minlength=V)[:, None] + 1
    tg = Tensor(g, backend=cupy_backend)
    for kind, table in ((np.int32, dtype), (np.int64, "float32")):
        ti = Tensor(ids.astype(kind), backend=cupy_backend)
        runs = [_embedding_backward(tg, ti, V, dtypes.parse(table)).numpy() for _ in range(2)]
        # 8 accumulators, each of a share of the tokens
        assert_close(runs[0], want, dtype=table, reduce=1, scale=np.sqrt(many),
                     c=16 if table == "float32" else None)  # fmt: skip
        np.testing.assert_array_equal(*runs)


# -- cache and quantization ----------------------------------------------------------------------
@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("K", "D", "Dv"), ((2, 64, 64), (1, 5, 3), (8, 128, 128), (3, 80, 48)))
def test_kv_write(K, D, Dv, dtype, stored, cupy_backend, rng):
    k, v = normal(rng, (70, K * D), dtype), normal(rng, (70, K * Dv), dtype)
    slots = rng.permutation(16 * 7).astype(np.int32)[:70]
    slots[[3, 9]] = -1
    caches = [normal(rng, (7, 16, K, n), stored) for n in (D, Dv)]
    held = tensors(cupy_backend, *caches)
    parts = [view(cupy_backend, k).reshape(70, K, D), view(cupy_backend, v, 3).reshape(70, K, Dv)]
    kv_write(*parts, *held, Tensor(slots, backend=cupy_backend))
    for cache, before, x, n in zip(held, caches, (k, v), (D, Dv), strict=True):
        want = oracles.kv_write(before, x.reshape(70, K, n).astype(before.dtype), slots)
        np.testing.assert_array_equal(cache.numpy(), want)


def test_steps_of_a_decode_loop(cupy_backend):
    ids, chosen = np.arange(600, dtype=np.int32), np.arange(600, 0, -1).astype(np.int32)
    held = tensors(cupy_backend, ids, chosen, ids, ids[:3], ids[:1])
    advance(held[0], held[1], held[2:])
    assert held[0].tolist() == chosen.tolist() and held[2].tolist() == (ids + 1).tolist()
    assert held[3].tolist() == [1, 2, 3] and held[4].tolist() == [1]


def test_slot_mapping(cupy_backend):
    table = np.array([[5, 2, 9], [1, -1, 4]], np.int32)
    positions, rows = np.arange(900, dtype=np.int32), np.arange(900, dtype=np.int32) % 2
    got = slot_mapping(*tensors(cupy_backend, positions, rows, table), 16).numpy()
    block = table[rows, positions // 16 % 3]
    np.testing.assert_array_equal(got, np.where(block < 0, -1, block * 16 + positions % 16))


@floats
@pytest.mark.parametrize("scheme", QUANTIZABLE)
@pytest.mark.parametrize(("N", "K"), ((5, 1), (7, 100), (3, 4096), (300, 576), (2, 14336)))
def test_quantize(N, K, scheme, dtype, cupy_backend, rng):
    w = normal(rng, (N, K), dtype)
    w[0] = 0
    got = quantize(Tensor(w, backend=cupy_backend), scheme)
    q, scale = oracles.quantize_int8(w, SCHEMES[scheme].group_size or None)
    np.testing.assert_array_equal(got.parts["values"].numpy(), q)
    np.testing.assert_array_equal(got.parts["scales"].numpy(), scale)
    values, _ = quantize_rows(Tensor(w, backend=cupy_backend))
    np.testing.assert_array_equal(values.numpy(), oracles.quantize_int8(w)[0])
