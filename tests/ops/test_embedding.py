"""Rows of a table in every stored form."""

import numpy as np
import oracles
import oracles_rows
import packed
import pytest
from conftest import holding
from draws import leaves, normal, refused, tensors
from packed import INT8
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, ShapeError
from boostr.ops.embedding import embedding
from boostr.ops.quant import dequantize, quantize

IDS = [np.array(v, np.int32) for v in ([3, 0, 3, 9], [], [9])]


@pytest.mark.parametrize("ids", IDS, ids=str)
def test_embedding(ids, backend, dtype, rng):
    w = normal(rng, (10, 33), dtype)
    got = embedding(*tensors(backend, ids, w))
    assert got.dtype == w.dtype
    np.testing.assert_array_equal(got.numpy().astype(np.float64), oracles.embedding(ids, w))
    assert embedding(*tensors(backend, ids, w), dtype="bf16").dtype == dtypes.bfloat16


@pytest.mark.parametrize("scheme", INT8)
def test_int8(scheme, backend, rng):
    w = quantize(Tensor(normal(rng, (10, 100)), backend=backend), scheme)
    got = embedding(Tensor(IDS[0], backend=backend), w)
    assert got.dtype == dtypes.float32
    np.testing.assert_array_equal(got.numpy(), dequantize(w).numpy()[IDS[0]])


@pytest.mark.parametrize("scheme", packed.BLOCKS)
def test_blocks(scheme, backend, rng):
    w, truth = packed.draw(backend, rng, scheme, 12, 512)
    for table, want in ((w, truth), (w.rows(1, 11), truth[1:11])):
        got = embedding(Tensor(IDS[0], backend=backend), table, "float32")
        # products with a scale are exact; an offset rounds once
        assert_close(got.numpy(), want[IDS[0]], dtype="float32", reduce=1)


def test_gradient(backend64, rng):
    ids = Tensor(IDS[0], backend=backend64)
    gradcheck(lambda w: embedding(ids, w), leaves(backend64, normal(rng, (10, 2))))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_gradient_of_every_dtype(kind, backend, dtype, rng):
    """Tokens that several positions share add up; rows that none has are zero."""
    holding(backend, np.dtype(kind).name)
    holding(backend, np.dtype(kind).name)
    ids, w = rng.integers(3, 9, 40).astype(kind), normal(rng, (10, 33), dtype)
    g = normal(rng, (40, 33), dtype)
    leaf = Tensor(w, backend=backend, requires_grad=True)
    embedding(Tensor(ids, backend=backend), leaf).backward(Tensor(g, backend=backend))
    want = oracles_rows.embedding_backward(g, ids, 10)
    assert leaf.grad.dtype == w.dtype
    assert_close(leaf.grad.numpy(), want, dtype=dtype, reduce=7)
    assert not leaf.grad.numpy()[:3].any()


def test_refuses(rng):
    ids, w = tensors("numpy", IDS[0], normal(rng, (10, 4)))
    with refused(DTypeError, "embedding", "integers", "float32"):
        embedding(w[0], w)
    with refused(DTypeError, "embedding", "[T]", "int32[2, 2]"):
        embedding(ids.reshape(2, 2), w)
    with refused(ShapeError, "embedding", "[V, E]", "[4]"):
        embedding(ids, w[0])
