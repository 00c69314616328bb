"""Weights whose inputs lie in another order: every op that takes a weight takes them."""

from __future__ import annotations

import numpy as np
import pytest
from draws import leaves, normal, tensors
from tolerance import TWO_DIGITS, assert_close, rms

from boostr import Tensor, ops, strict
from boostr.autograd import gradcheck
from boostr.operands import LowRank, Ordered

N, K = 24, 96


@pytest.fixture
def made(backend, rng):
    """(the weight, what it means in float64)."""
    order = rng.permutation(K).astype(np.int32)
    base = ops.quantize(Tensor(normal(rng, (N, K)), backend=backend), "int8-g32")
    meant = np.empty((N, K))
    meant[:, order] = ops.dequantize(base).numpy()
    return Ordered(base, Tensor(order, backend=backend)), meant


def test_dequantize(made):
    weight, meant = made
    assert weight.shape == (N, K) and weight.size == N * K
    assert weight.nbytes == weight.base.nbytes + 4 * K
    assert np.array_equal(ops.dequantize(weight).numpy(), meant)
    assert np.array_equal(ops.dequantize(weight.rows(3, 9)).numpy(), meant[3:9])


@pytest.mark.parametrize("T", [1, 5])
def test_linear(T, made, backend, rng):
    weight, meant = made
    x, bias, residual = (normal(rng, shape) for shape in ((T, K), (N,), (T, N)))
    scale = rms(x) * rms(meant)
    moved = tensors(backend, x, bias, residual)
    close = {"dtype": "float32", "reduce": K, "scale": scale, "c": TWO_DIGITS}
    assert_close(ops.linear(moved[0], weight).numpy(), x @ meant.T, **close)
    got = ops.linear(moved[0], weight, *moved[1:]).numpy()
    assert_close(got, x @ meant.T + bias + residual, **close)


def test_its_parts_have_the_kernels_of_its_base(plain_backend, rng):
    order = Tensor(np.arange(K, dtype=np.int32)[::-1].copy(), backend=plain_backend)
    base = ops.quantize(Tensor(normal(rng, (N, K)), backend=plain_backend), "int8-g32")
    with strict():
        ops.linear(Tensor(normal(rng, (3, K)), backend=plain_backend), Ordered(base, order))


def test_embedding(made, backend):
    weight, meant = made
    ids = np.array([7, 0, 23, 7], np.int32)
    got = ops.embedding(Tensor(ids, backend=backend), weight)
    assert np.array_equal(got.numpy(), meant[ids])


def test_an_adapter_over_it(made, backend, rng):
    weight, meant = made
    x, down, up = (normal(rng, shape) for shape in ((3, K), (4, K), (N, 4)))
    adapted = LowRank(weight, Tensor(down, backend=backend), Tensor(up, backend=backend), 0.5)
    got = ops.linear(Tensor(x, backend=backend), adapted).numpy()
    want = x @ (meant + 0.5 * up.astype(np.float64) @ down).T
    close = {"dtype": "float32", "reduce": K, "c": TWO_DIGITS}
    assert_close(got, want, scale=rms(x) * rms(meant), **close)


def test_gradient(backend64, rng):
    order = Tensor(rng.permutation(K).astype(np.int32), backend=backend64)
    base = ops.quantize(Tensor(normal(rng, (4, K)), backend=backend64), "int8-g32")
    gradcheck(
        lambda x: ops.linear(x, Ordered(base, order)),
        leaves(backend64, normal(rng, (2, K), "float64")),
    )
