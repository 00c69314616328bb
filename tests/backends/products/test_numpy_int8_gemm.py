"""w8a8 products of many rows on the CPU: int8 by int8, summed exactly."""

import numpy as np
import pytest

from tests import oracles

pytest.importorskip("numba")
from boostr.backends.numpy.products import linear
from boostr.backends.numpy.runtime import jit, threads
from boostr.dispatch import strict
from boostr.ops.linear import linear as product
from boostr.quant.scheme import QuantizedTensor, parse_scheme
from boostr.tensor import Tensor

SHAPES = (
    (9, 1, 1), (17, 7, 5), (64, 16, 31), (100, 33, 32), (9, 192, 33), (17, 33, 576),
    (64, 192, 1536), (100, 7, 65), (30, 40, 127),
)  # fmt: skip
RNG = np.random.default_rng(11)


@pytest.fixture(params=(1, 2))
def pool(request, monkeypatch):
    found = threads.Pool(request.param)
    monkeypatch.setattr(threads, "_pool", found)
    yield found
    found.close()


def weights(N, K):
    """(int8 [N, K] with -128 in it, f32 [N, 1])."""
    q = RNG.integers(-128, 128, (N, K)).astype(np.int8)
    return q, RNG.uniform(0.001, 0.1, (N, 1)).astype(np.float32)


def check(x, q, scale, bias=None, residual=None):
    """Sums are exact, so that all the error is from scaling and adding in float32.

    Not so where the processor has no integer products; there float32 sums rounded values.
    """
    parts = {"codes": Tensor(q), "scales": Tensor(scale)}
    weight = QuantizedTensor(parse_scheme("w8a8"), q.shape, parts)
    with strict():
        got = product(
            Tensor(x),
            weight,
            None if bias is None else Tensor(bias),
            None if residual is None else Tensor(residual),
        ).numpy()
    exact = oracles.linear_w8a8(x, q, scale)
    reference, size = exact.copy(), np.abs(exact)
    for extra in (bias, residual):
        if extra is not None:
            reference, size = reference + extra, size + np.abs(extra)
    error = np.abs(got - reference)
    if not jit.target().int8_dot:
        size = size + oracles.linear_w8a8(np.abs(x), np.abs(q.astype(int)), scale)
    assert (error <= 8 * np.finfo(np.float32).eps * size).all(), error.max()


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_odd_sizes(pool, M, N, K):
    q, scale = weights(N, K)
    x = RNG.standard_normal((M, K)).astype(np.float32)
    check(x, q, scale)
    bias = RNG.standard_normal(N).astype(np.float32)
    residual = RNG.standard_normal((M, N)).astype(np.float32)
    check(x, q, scale, bias, residual)


def test_extremes(pool):
    M, N, K = 20, 34, 640
    q, scale = weights(N, K)
    q[0], q[1], q[2], q[3] = 127, -127, 0, -128
    x = RNG.standard_normal((M, K)).astype(np.float32)
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    x[3, 77] = 1e6  # all others round to 0 or little more
    x[4] *= 1e-20
    x[5] *= 1e20
    x[6] = np.where(np.arange(K) % 2, 3.0, -3.0)
    check(x, q, scale)


def test_panels_longer_than_the_stack(pool, monkeypatch):
    """Sums over several panels' depth stay integers in between."""
    monkeypatch.setattr(linear, "_INT8_DEPTH", 128)
    for K in (128, 129, 300, 1024):
        q, scale = weights(37, K)
        x = RNG.standard_normal((23, K)).astype(np.float32)
        check(x, q, scale, residual=RNG.standard_normal((23, 37)).astype(np.float32))
