"""Dropout: which elements are 0, bit for bit on every backend; its gradient is under its mask."""

import numpy as np
import pytest
from draws import normal, refused

from boostr import Tensor, ops
from boostr.errors import DTypeError, OptionError

MULTIPLIERS, STEPS, WORD = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 0xFFFFFFFF


def philox(counter, key):
    """Salmon et al. 2011, in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = MULTIPLIERS[0] * c[0], MULTIPLIERS[1] * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & WORD, (first >> 32) ^ c[3] ^ k[1], first & WORD]
        k = [(word + step) & WORD for word, step in zip(k, STEPS, strict=True)]
    return c


def kept(size, rate, key, step):
    words = [w for i in range(-(-size // 4)) for w in philox((i, step, 0, 0), key)]
    return np.array([(w >> 8) * 2.0**-24 >= rate for w in words[:size]])


@pytest.mark.parametrize("shape", [(3, 7), (1,), (4, 4), (0, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_which(shape, dtype, backend, rng):
    values, rate, key = normal(rng, shape, dtype), 0.25, (7, 0xFFFFFFF0)
    x = Tensor(values, backend=backend, requires_grad=True)
    step = Tensor(np.array([3], np.int32), backend=backend)
    y, g = ops.dropout(x, rate, key, step), normal(rng, shape, dtype)
    mask = kept(values.size, rate, key, 3).reshape(shape) / np.float32(0.75)
    rtol = 1e-6 if dtype == "float32" else 2**-7
    np.testing.assert_allclose(y.numpy().astype("f4"), values.astype("f4") * mask, rtol=rtol)
    step.assign(np.array([4], np.int32))  # the next pass has begun
    y.backward(Tensor(g, backend=backend))
    np.testing.assert_allclose(x.grad.numpy().astype("f4"), g.astype("f4") * mask, rtol=rtol)


def test_rate(rng):
    x = Tensor(np.ones((100, 100), "f4"), backend="numpy")
    shares = []
    for step in range(20):
        y = ops.dropout(x, 0.1, (1, 2), Tensor(np.array([step], np.int32), backend="numpy"))
        shares.append((y.numpy() == 0).mean())
    sd = np.sqrt(0.1 * 0.9 / 10_000)
    assert np.abs(np.array(shares) - 0.1).max() < 5 * sd and len(set(shares)) > 10
    step = Tensor(np.array([0], np.int32), backend="numpy")
    assert ops.dropout(x, 0.0, (1, 2), step) is x


def test_refuses():
    x, step = Tensor(np.ones(3, "f4")), Tensor(np.zeros(1, np.int32))
    with refused(OptionError, "dropout", "rate", "1.0"):
        ops.dropout(x, 1.0, (0, 0), step)
    with refused(DTypeError, "dropout", "int32[2]"):
        ops.dropout(x, 0.1, (0, 0), Tensor(np.zeros(2, np.int32)))
