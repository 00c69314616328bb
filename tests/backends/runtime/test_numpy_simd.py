"""The kernel language (`simd.py`, `memory.py`, `vmath.py`): each operation by itself."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("numba")
from boostr.backends.numpy.kernels.runtime import memory, simd, vmath
from boostr.backends.numpy.runtime import jit
from boostr.errors import BackendError

LANES = simd.LANES
RNG = np.random.default_rng(3)


def run(kernel, *arrays):
    """Compiles a kernel and calls it once for all elements of the first array."""
    params = np.array([array.ctypes.data for array in arrays], np.int64)
    jit.call(jit.from_function(kernel), params, 0, arrays[0].size)


def copier(pointer, function=None):
    """y[i] = function(x[i]) by full vectors and one masked step."""
    f32, load, load_n, store, store_n = (
        memory.f32, memory.load, memory.load_n, memory.store, memory.store_n,
    )  # fmt: skip
    apply = function or simd.inline(lambda value: value)

    def kernel(params, start, stop):
        x, y = pointer(params[0]), f32(params[1])
        whole = start + (stop - start) // LANES * LANES
        for i in range(start, whole, LANES):
            store(y, i, apply(load(x, i)))
        if whole < stop:
            store_n(y, whole, apply(load_n(x, whole, stop - whole)), stop - whole)

    return kernel


def test_exp():
    special = [-np.inf, np.inf, np.nan, 0.0, 88.72, 88.73, -87.4, -103.0]
    x = np.concatenate([np.linspace(-104, 89, 100003), special]).astype(np.float32)
    y = np.zeros_like(x)
    run(copier(memory.f32, vmath.exp), x, y)
    with np.errstate(over="ignore"):
        reference = np.exp(x.astype(np.float64))
        rounded = reference.astype(np.float32)
    normal = np.isfinite(rounded) & (rounded > 1.2e-38)
    error = np.abs(y[normal] - reference[normal]) / np.spacing(rounded[normal]).astype(np.float64)
    assert error.max() < 2.0
    assert y[-8] == 0 and y[-7] == np.inf and np.isnan(y[-6]) and y[-5] == 1
    assert y[-3] == np.inf
    tiny = ~normal & (reference < 1)
    assert np.abs(y[tiny] - reference[tiny]).max() < 1e-44


@pytest.mark.parametrize("form", ("f32", "bf16", "f16", "i8", "u8"))
def test_decoded(form):
    x = {
        "f32": RNG.standard_normal(37).astype(np.float32),
        "bf16": np.arange(1 << 16).astype(np.uint16).view(ml_dtypes.bfloat16),
        "f16": np.arange(1 << 16).astype(np.uint16).view(np.float16),
        "i8": np.arange(-128, 128).astype(np.int8)[:-3],
        "u8": np.arange(256).astype(np.uint8)[:-3],
    }[form]
    y = np.full(x.size + 1, 7.0, np.float32)
    run(copier(getattr(memory, form)), x, y)
    with np.errstate(invalid="ignore"):  # numpy on aarch64 warns of signalling nans
        reference = x.astype(np.float32)
    np.testing.assert_array_equal(y[:-1], reference)
    assert y[-1] == 7.0


def test_elements():
    """p[i] of each stored form, read as a scalar."""
    f32, bf16, f16, i8, u8 = memory.f32, memory.bf16, memory.f16, memory.i8, memory.u8

    def kernel(params, start, stop):
        y = f32(params[0])
        y[0], y[1], y[2] = bf16(params[1])[1], f16(params[2])[1], i8(params[3])[1]
        y[3] = u8(params[3])[1]
        i8(params[3])[0] = -5

    y, small = np.zeros(4, np.float32), np.array([1, -2], np.int8)
    halves = np.array([1, -2.5], np.float16)
    run(kernel, y, halves.astype(ml_dtypes.bfloat16), halves, small)
    assert y.tolist() == [-2.5, -2.5, -2.0, 254.0]
    assert small.tolist() == [-5, -2]


def test_sums():
    f32, load, put = memory.f32, memory.load, memory.put
    reduce_add, reduce_max, reduce_min = vmath.reduce_add, vmath.reduce_max, vmath.reduce_min

    def kernel(params, start, stop):
        x, y = f32(params[0]), f32(params[1])
        four = (load(x, 0), load(x, LANES), load(x, 2 * LANES), load(x, 3 * LANES))
        three = (load(x, 0), load(x, LANES), load(x, 2 * LANES))
        put(y, reduce_add(four))
        put(y + 4, reduce_max(four))
        put(y + 8, reduce_min(three))
        y[11] = reduce_add(load(x, 0))

    x, y = RNG.standard_normal((4, LANES)).astype(np.float32), np.zeros(12, np.float32)
    run(kernel, x, y)
    expected = [*x.sum(1), *x.max(1), *x[:3].min(1), x[0].sum()]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_masks_and_operators():
    f32, load, store = memory.f32, memory.load, memory.store
    less, select, iota, vector = simd.less, simd.select, simd.iota, simd.vector
    to_f32, to_i32, absolute, rint = simd.to_f32, simd.to_i32, simd.absolute, simd.rint
    divide, three = simd.divide, np.int32(3)

    def kernel(params, start, stop):
        x, y = f32(params[0]), f32(params[1])
        v = select(less(iota(), vector(three)), load(x, 0), -1.0)
        v += 1.0
        store(y, 0, (v * 2.0 - load(x, 0)) / 4.0)
        store(y, LANES, to_f32(((to_i32(load(x, 0)) << 4) & 255) >> 1))
        store(y, 2 * LANES, rint(divide(absolute(load(x, 0)), 3.0)))

    x, y = (RNG.standard_normal(LANES) * 9).astype(np.float32), np.zeros((3, LANES), np.float32)
    run(kernel, x, y)
    v = np.where(np.arange(LANES) < 3, x, -1) + np.float32(1)
    np.testing.assert_allclose(y[0], (v * 2 - x) / 4, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(y[1], ((x.astype(np.int32) << 4) & 255) >> 1)
    np.testing.assert_array_equal(y[2], np.rint(np.abs(x) / np.float32(3)))


def test_kernels_that_need_python_are_refused():
    def kernel(params, start, stop):
        print(start)

    with pytest.raises(BackendError, match="not self-contained"):
        jit.from_function(kernel)
