"""Sums, casts and scaling of arrays that are large enough for kernels of their own on a GPU."""

import numpy as np
import pytest
from draws import normal, tensors
from tolerance import EPS, assert_close

from boostr import Tensor, dtypes
from boostr.ops import core
from boostr.ops.linear_loss import _times

SIZES = [1 << 15, (1 << 16) + 1, 3 * 4096 + (1 << 15) + 7]  # whole runs, and rests of them
FLOATS = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_two_arrays(size, name, dtype, plain_backend, rng):
    a, b = (normal(rng, size, dtype) for _ in range(2))
    x, y = tensors(plain_backend, a, b)
    fn = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    want = fn(a.astype(np.float64), b.astype(np.float64))
    got = getattr(core, name)(x, y)
    assert got.dtype == x.dtype and got.shape == (size,)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1)
    # one element further nothing lies at a multiple of 16 bytes
    shifted = getattr(core, name)(x[1:], y[1:])
    np.testing.assert_array_equal(shifted.numpy(), got.numpy()[1:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_cast_is_numpys(size, wanted, dtype, plain_backend, rng):
    a = normal(rng, size, dtype)
    a[:4] = 0.0, -0.0, np.inf, np.nan
    wanted = dtypes.parse(wanted)
    (x,) = tensors(plain_backend, a)
    for start in (0, 1):
        got, want = core.cast(x[start:], wanted).numpy(), a[start:].astype(wanted)
        assert got.dtype == wanted
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("size", [1, 5, *SIZES])
@pytest.mark.parametrize("wanted", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_times_a_scalar(size, wanted, dtype, backend, rng):
    """Rounded once, to the dtype that is asked for."""
    a = normal(rng, (1, size), dtype)
    (x,) = tensors(backend, a)
    factor = Tensor(np.float32(0.37), backend=backend)
    got = _times(x, factor, dtypes.parse(wanted))
    want = a.astype(np.float64) * np.float64(np.float32(0.37))
    assert got.dtype == dtypes.parse(wanted) and got.shape == a.shape
    np.testing.assert_allclose(
        got.numpy().astype(np.float64), want, rtol=max(EPS[wanted], 2e-7), atol=1e-7
    )
