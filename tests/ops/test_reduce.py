"""Reductions, products and indexing against numpy in float64, and their gradients."""

import numpy as np
import pytest
from draws import leaves, normal, strided, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes, full
from boostr.autograd import gradcheck
from boostr.ops import core


def f64(x):
    return np.asarray(x).astype(np.float64)


# -- reductions ----------------------------------------------------------------------------------
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
@pytest.mark.parametrize("name", ["sum", "max", "min", "mean"])
def test_reduce(name, axis, keepdims, backend, dtype, rng):
    x = normal(rng, (3, 4, 33), dtype)
    got = getattr(core, name)(Tensor(strided(x), backend=backend), axis, keepdims)
    want = getattr(np, name)(f64(x), axis=axis, keepdims=keepdims)
    assert got.dtype == x.dtype
    assert_close(got.numpy(), want, dtype=dtype, reduce=x.size // max(np.size(want), 1))


@pytest.mark.parametrize("axis", [None, 1, (0, 1)])
@pytest.mark.parametrize("name", ["sum", "max", "min", "mean"])
def test_reduce_gradient(name, axis, backend64, rng):
    gradcheck(lambda x: getattr(core, name)(x, axis), leaves(backend64, normal(rng, (3, 4))))


def test_mean_of_many_halves_does_not_overflow(plain_backend):
    x = full((100_000,), 2, "float16", plain_backend)
    assert core.mean(x).item() == 2 and core.mean(x).dtype == dtypes.float16


def test_sum_of_flags_and_bytes_counts(plain_backend):
    assert core.sum(Tensor([True] * 300, backend=plain_backend)).item() == 300
    assert core.sum(full((300,), 2, "int8", plain_backend)).item() == 600


def test_empty_reductions(plain_backend):
    x = full((0, 3), 0, backend=plain_backend)
    assert core.sum(x).item() == 0 and core.sum(x, 0).tolist() == [0, 0, 0]
    assert core.max(x, 1).shape == (0,)


def test_argmax_takes_the_first(backend, dtype):
    x = Tensor(np.array([[1, 3, 3], [5, 5, 0]], dtypes.parse(dtype)), backend=backend)
    got = core.argmax(x)
    assert got.dtype == dtypes.int32 and got.tolist() == [1, 0]
    assert core.argmax(x, 0).tolist() == [1, 1, 0]


def test_argsort_is_stable(backend, dtype, rng):
    x = rng.integers(0, 5, (4, 40)).astype(dtypes.parse(dtype))
    got = core.argsort(Tensor(x, backend=backend), 1)
    assert got.dtype == dtypes.int32
    np.testing.assert_array_equal(got.numpy(), np.argsort(f64(x), axis=1, kind="stable"))


def test_cumsum(backend, dtype, rng):
    x = normal(rng, (3, 200), dtype)
    got = core.cumsum(Tensor(strided(x), backend=backend), 1)
    assert got.dtype == x.dtype
    assert_close(got.numpy(), np.cumsum(f64(x), 1), dtype=dtype, reduce=200)


def test_cumsum_of_a_vocabulary(plain_backend):
    """100 000 probabilities: float32 partial sums alone would be off by 1e-4."""
    x = np.full(100_000, 1e-5, np.float32)
    got = core.cumsum(Tensor(x, backend=plain_backend)).numpy()
    assert_close(got, np.cumsum(f64(x)), dtype="float32", reduce=1, scale=0.0)


def test_cumsum_gradient(backend64, rng):
    gradcheck(lambda x: core.cumsum(x, 0), leaves(backend64, normal(rng, (4, 2))))


# -- products ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 5), (5, 4)), ((2, 1, 3, 65), (7, 65, 2)), ((0, 5), (5, 4)), ((3, 0), (0, 2))],
)
def test_matmul(left, right, backend, dtype, rng):
    a, b = normal(rng, left, dtype), normal(rng, right, dtype)
    got = core.matmul(*tensors(backend, strided(a), strided(b)))
    assert got.dtype == a.dtype
    assert_close(got.numpy(), f64(a) @ f64(b), dtype=dtype, reduce=max(left[-1], 1))


def test_matmul_sums_low_precision_in_float32(plain_backend):
    a, b = full((1, 4096), 1, "bfloat16", plain_backend), full((4096, 1), 1, "bf16", plain_backend)
    assert (a @ b).item() == 4096  # a bfloat16 sum would stop at 256


def test_matmul_gradient(backend64, rng):
    gradcheck(core.matmul, leaves(backend64, normal(rng, (2, 3, 4)), normal(rng, (4, 2))))
    gradcheck(core.matmul, leaves(backend64, normal(rng, (3, 2)), normal(rng, (2, 2, 2))))


# -- indexing ------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_take(axis, shape, backend, dtype, rng):
    x, i = normal(rng, (4, 5, 6), dtype), rng.integers(0, 4, shape).astype(np.int32)
    got = core.take(*tensors(backend, strided(x), i), axis)
    np.testing.assert_array_equal(got.numpy(), np.take(x, i, axis))


def test_take_gradient(backend64, rng):
    i = Tensor(np.array([[2, 0], [2, 1]], np.int32), backend=backend64)
    for axis in (0, 1, 2):
        gradcheck(lambda x, a=axis: core.take(x, i, a), leaves(backend64, normal(rng, (3, 3, 3))))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_take_along(axis, backend, dtype, rng):
    x = normal(rng, (3, 4, 3), dtype)
    shape = [2 if a == axis % 3 else n for a, n in enumerate(x.shape)]
    i = rng.integers(0, 3, shape).astype(np.int32)
    got = core.take_along(*tensors(backend, x, i), axis)
    np.testing.assert_array_equal(got.numpy(), np.take_along_axis(x, i.astype(np.int64), axis))


def test_take_along_gradient(backend64, rng):
    i = Tensor(np.array([[2, 0, 2], [1, 1, 0]], np.int32), backend=backend64)
    gradcheck(lambda x: core.take_along(x, i, 1), leaves(backend64, normal(rng, (2, 3))))
    gradcheck(lambda x: core.take_along(x, i, 0), leaves(backend64, normal(rng, (3, 3))))


def test_scatter_add(backend, dtype, rng):
    rows, i = normal(rng, (5, 3), dtype), np.array([1, 0, 1, 1, 3], np.int32)
    want = np.zeros((4, 3))
    np.add.at(want, i, f64(rows))
    got = core.scatter_add((4, 3), *tensors(backend, i, rows))
    assert_close(got.numpy(), want, dtype=dtype, reduce=3)


def test_scatter_add_gradient(backend64, rng):
    i = Tensor(np.array([1, 0, 1], np.int32), backend=backend64)
    gradcheck(lambda r: core.scatter_add((2, 2), i, r), leaves(backend64, normal(rng, (3, 2))))
