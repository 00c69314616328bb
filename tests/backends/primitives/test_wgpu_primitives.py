"""Primitives of the wgpu backend where they take ways of their own: odd sizes, offsets, strides,
long rows, memory that a kernel cannot see at once. Memory is dirty in all of these tests."""

import math

import ml_dtypes
import numpy as np
import pytest
from draws import normal
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.backends.wgpu.primitives import primitives_elementwise
from boostr.ops import core

HELD = ("float32", "float16", "bfloat16", "int32", "uint32", "int8", "uint8", "bool")


@pytest.fixture
def wgpu():
    with strict_wgpu(strict=False) as backend:
        yield backend


def numbers(rng, shape, dtype):
    """Any numbers of a dtype, exact in it and different from each other where there are enough."""
    return (np.arange(np.prod(shape)) % 251 - 100).reshape(shape).astype(dtypes.parse(dtype))


def same(got, want):
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.numpy(), want)


VIEWS = {
    "whole": lambda x: x,
    "odd start": lambda x: x[1:, 3:],
    "aligned": lambda x: x[:, 8:24],
    "backwards": lambda x: x[::-1, ::-2],
    "turned": lambda x: x.T,
    "turned part": lambda x: x[1:19, 4:28].T,
    "one column": lambda x: x[:, 5:6],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_copies(name, dtype, wgpu, rng):
    x = numbers(rng, (21, 33), dtype)
    view = VIEWS[name](Tensor(x, backend=wgpu))
    same(Tensor.wrap(wgpu.copy(view.data), wgpu), VIEWS[name](x))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_copies_of_many_axes(dtype, wgpu, rng):
    x = numbers(rng, (2, 3, 2, 3, 2, 3, 2, 2), dtype)
    t = Tensor(x, backend=wgpu)
    for axes in ((7, 6, 5, 4, 3, 2, 1, 0), (1, 0, 3, 2, 5, 4, 7, 6)):
        same(t.permute(axes).contiguous(), x.transpose(axes))
    a, b, c = (
        t.permute(axes) for axes in ((6, 1, 2, 3, 4, 5, 0, 7), range(8), (7, *range(1, 7), 0))
    )
    same(core.where(a > b, b, c), np.where(a.numpy() > b.numpy(), b.numpy(), c.numpy()))


@pytest.mark.parametrize("shape", [(3, 64, 40), (2, 70, 48), (48, 33), (2, 132, 200)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_transposes_in_shared_memory(shape, dtype, wgpu, rng):
    x = numbers(rng, shape, dtype)
    axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    same(Tensor(x, backend=wgpu).permute(axes).contiguous(), x.transpose(axes))


def test_turned_operands_are_copied_first(wgpu, rng, monkeypatch):
    monkeypatch.setattr(primitives_elementwise, "_LARGE", 1000)
    x = normal(rng, (40, 40))
    t = Tensor(x, backend=wgpu)
    same(t.T + t, x.T + x)
    same(t.T.to("bf16"), x.T.astype(ml_dtypes.bfloat16))
    same(core.where(t > t.T, t.T, 0), np.where(x > x.T, x.T, 0))


def test_copies_keep_every_bit(wgpu):
    bits = np.array([0x7FA00001, 0xFFFFFFFF, 1, 0x80000000, 0x7F800000], np.uint32)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        x = Tensor(bits.view(dtype), backend=wgpu)
        copied = Tensor.wrap(wgpu.copy(x.data), wgpu)
        np.testing.assert_array_equal(copied.numpy().view(np.uint32), bits)
        chosen = core.where(x == x, x, x)
        np.testing.assert_array_equal(chosen.numpy().view(np.uint32), bits)


@pytest.mark.parametrize("source", HELD)
@pytest.mark.parametrize("target", HELD)
def test_casts(source, target, wgpu):
    values = (
        [0, 1, 2, 3, 100, 127] if source == "bool" or target == "bool" else [0, 1, 2.7, 100, 127]
    )
    negative = {"int32", "int8"}
    if not target.startswith("uint"):  # C leaves open what a float below 0 becomes there
        negative |= {"float32", "float16", "bfloat16"}
    values += [-1, -2.7, -100] if source in negative else []
    x = np.array(values).astype(dtypes.parse(source))
    with np.errstate(all="ignore"):
        same(Tensor(x, backend=wgpu).to(target), x.astype(dtypes.parse(target)))


def test_casts_of_low_precision_round_as_numpy(wgpu, rng):
    x = np.concatenate(
        [
            normal(rng, 500, scale=10.0 ** rng.integers(-6, 6, 500)),
            [65519, 65520, 1e30, -1e30, 1 + 2**-11, 1 + 3 * 2**-11, 0, -0.0, np.inf],
        ]
    )
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        for dtype in (np.float16, ml_dtypes.bfloat16):
            got = Tensor(x, backend=wgpu).to(dtype).numpy()
            np.testing.assert_array_equal(got.view(np.uint16), x.astype(dtype).view(np.uint16))


@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos", "tanh", "erf", "sqrt", "rsqrt"])
def test_functions_to_a_few_ulp(name, wgpu, rng):
    x = np.concatenate(
        [
            normal(rng, 2000, scale=3.0),
            normal(rng, 1000, scale=30.0),
            normal(rng, 1000, scale=1e-3),
            1 + normal(rng, 500, scale=1e-4),
        ]
    )
    x = np.abs(x) if name in ("log", "sqrt", "rsqrt") else x
    x = x.astype(np.float32)
    want = {"erf": np.vectorize(math.erf), "rsqrt": lambda v: 1 / np.sqrt(v)}.get(name) or getattr(
        np, name
    )
    got = getattr(core, name)(Tensor(x, backend=wgpu)).numpy()
    with np.errstate(over="ignore", under="ignore"):
        exact = want(x.astype(np.float64))
    ulp = np.spacing(np.minimum(np.abs(exact), 3e38).astype(np.float32)).astype(np.float64)
    normal_range = (np.abs(exact) > 1e-37) & (np.abs(exact) < 3e38)
    error = np.abs(got - exact)[normal_range] / ulp[normal_range]
    if name in ("sin", "cos"):  # near a zero of theirs the error is absolute
        error = np.minimum(error, np.abs(got - exact)[normal_range] / 2.0**-24)
    assert error.max() < 4


def test_quotients_are_the_nearest(wgpu, rng):
    a, b = (normal(rng, 20_000) * 10.0 ** rng.integers(-8, 8, 20_000) for _ in range(2))
    a = np.append(a, [6, 1, 0, 3e38, 1e-40, 1]).astype(np.float32)
    b = np.append(b, [3, 0, 1, 1e-3, 1, np.inf]).astype(np.float32)
    got = (Tensor(a, backend=wgpu) / Tensor(b, backend=wgpu)).numpy()
    with np.errstate(all="ignore"):
        want = a / b
    assert np.sum(got[:-4] != want[:-4]) <= 1  # of 20 002
    np.testing.assert_array_equal(got[[-6, -5, -4, -3, -1]], want[[-6, -5, -4, -3, -1]])


def test_powers(wgpu, rng):
    a = np.abs(normal(rng, 3000, scale=2.0)) + 1e-3
    b = normal(rng, 3000, scale=8.0)
    got = core.pow(*(Tensor(v.astype(np.float32), backend=wgpu) for v in (a, b))).numpy()
    with np.errstate(over="ignore"):
        exact = a.astype(np.float32).astype(np.float64) ** b.astype(np.float32).astype(np.float64)
    fine = (exact > 1e-37) & (exact < 3e38)
    assert np.max(np.abs(got - exact)[fine] / exact[fine]) < 8 * 2.0**-24
    decay = Tensor(np.float32([0.999, 0.9]), backend=wgpu) ** Tensor(
        np.float32([1000, 99]), backend=wgpu
    )
    want = np.float64(np.float32([0.999, 0.9])) ** [1000, 99]
    np.testing.assert_allclose(decay.numpy(), want, rtol=2e-7)
    x = Tensor(np.float32([-2, -2, 0, 0, -8, 2, -1]), backend=wgpu)
    y = Tensor(np.float32([3, 7, 0, -1, 1 / 3, np.inf, np.nan]), backend=wgpu)
    np.testing.assert_array_equal(
        (x**y).numpy(), np.float32([-8, -128, 1, np.inf, np.nan, np.inf, np.nan])
    )


def test_signs_of_remainders(wgpu):
    a = np.array([7, -7, 7, -7, 0, 6, -6, 5, -(2**31), 2**31 - 1], np.int32)
    b = np.array([3, 3, -3, -3, 5, 3, 3, 0, 3, -1], np.int32)
    x, y = (Tensor(v, backend=wgpu) for v in (a, b))
    with np.errstate(divide="ignore"):
        same(x // y, a // b)
        same(x % y, a % b)
    a = np.float32([7, -7, 7, -7, 0, 6, -6, 5.5, 1e7, 0.3])
    b = np.float32([3, 3, -3, -3, 5, 3, 3, 0.5, 3, 0.1])
    x, y = (Tensor(v, backend=wgpu) for v in (a, b))
    same(x // y, a // b)
    np.testing.assert_allclose((x % y).numpy(), a % b, rtol=1e-5)


def test_nan_and_infinities(wgpu):
    x = np.float32([np.nan, 1, np.inf, -np.inf, -0.0])
    y = np.float32([1, np.nan, np.inf, 5, 0.0])
    a, b = (Tensor(v, backend=wgpu) for v in (x, y))
    for name in ("maximum", "minimum"):
        same(getattr(core, name)(a, b), getattr(np, name)(x, y))
    for name in ("eq", "ne", "lt", "ge"):
        want = {"eq": x == y, "ne": x != y, "lt": x < y, "ge": x >= y}[name]
        same(getattr(core, name)(a, b), want)
    wide = np.zeros(300, np.float32)
    wide[[70, 250]] = np.nan
    t = Tensor(wide, backend=wgpu)
    assert np.isnan(core.max(t).item()) and np.isnan(core.min(t).item())
    assert core.argmax(t).item() == 70
    low = Tensor(np.full((2, 3), -np.inf, np.float32), backend=wgpu)
    same(core.max(low, 1), np.float32([-np.inf, -np.inf]))


def test_flags_and_bytes(wgpu):
    a, b = np.array([True, True, False]), np.array([True, False, False])
    x, y = (Tensor(v, backend=wgpu) for v in (a, b))
    for got, want in (
        (x + y, a + b),
        (x * y, a * b),
        (x & y, a & b),
        (x ^ y, a ^ b),
        (x == y, a == b),
    ):
        same(got, want)
    n = np.array([100, -100, -128, 127, 3], np.int8)
    t = Tensor(n, backend=wgpu)
    same(t + t, n + n)
    same(-t, -n)
    same(core.abs(t), np.abs(n))
    same(t * 3, n * np.int8(3))
    same(t << 1, n << 1)
    same(t >> 9, n >> 7)
    same(Tensor(np.uint32([1, 2]), backend=wgpu) << 40, np.uint32([0, 0]))


def test_a_new_scalar_compiles_nothing(wgpu):
    x = Tensor(np.float32([1, 2, 3]), backend=wgpu)
    before = (x * 2.0 + 1).numpy()  # noqa: F841
    count = len(wgpu.pipelines)
    same(x * 5.0 + 7, np.float32([12, 17, 22]))
    assert len(wgpu.pipelines) == count


# -- devices that see less -----------------------------------------------------------------------
def test_arrays_larger_than_a_binding(rng):
    with strict_wgpu(binding_bytes=65536, strict=False) as wgpu:
        for dtype in ("float32", "bfloat16"):
            x = normal(rng, (300, 128), dtype)
            t = Tensor(x, backend=wgpu)
            y = normal(rng, (300, 1), dtype)
            same(t * Tensor(y, backend=wgpu), x * y)
            same(t + t, x + x)
            same(t.T.contiguous(), x.T)
            same(core.max(t), x.max())
            same(core.max(t, 1), x.max(1))
            assert_close(
                core.sum(t, 0).numpy(), x.astype(np.float64).sum(0), dtype=dtype, reduce=300
            )
            i = rng.integers(-300, 300, 40).astype(np.int32)
            same(core.take(t, Tensor(i, backend=wgpu)), x[i])
            t[3:200].assign(Tensor(x[:197], backend=wgpu))
            x[3:200] = x[:197].copy()
            same(t, x)
            wgpu.put_rows(t.data, Tensor(np.int32([299, -1, 5]), backend=wgpu).data, t[:3].data)
            x[[299, 5]] = x[[0, 2]]
            same(t, x)
            spread = core.scatter_add(x.shape, Tensor(np.int32([299, 1, 299]), backend=wgpu), t[:3])
            want = np.zeros(x.shape)
            np.add.at(want, [299, 1, 299], x[:3].astype(np.float64))
            assert_close(spread.numpy(), want, dtype=dtype, reduce=2)
        same(core.concat([t, t], 0), np.concatenate([t.numpy()] * 2))
        assert np.all(t.full_like(3).numpy() == 3)


def test_a_device_without_extras(rng):
    """No immediates: parameters lie in a uniform buffer."""
    with strict_wgpu(strict=False, **BARE) as wgpu:
        x = normal(rng, (9, 33))
        t = Tensor(x, backend=wgpu)
        same(
            core.where(t > 0.5, t.T.contiguous().T * 2, 1.0),
            np.where(x > 0.5, x * 2, 1).astype(np.float32),
        )
        assert_close(
            core.sum(t, 1).numpy(), x.astype(np.float64).sum(1), dtype="float32", reduce=33
        )
        same(core.argsort(t, 1), np.argsort(x, axis=1).astype(np.int32))


def test_grids_are_folded(rng):
    with strict_wgpu(workgroups=16, strict=False) as wgpu:
        x = normal(rng, (100, 65))
        t = Tensor(x, backend=wgpu)
        same(t[:, :64] + 1, x[:, :64] + np.float32(1))
        same(t.T.contiguous(), x.T)
        same(core.max(t, 1), x.max(1))
        same(core.argsort(t, 0), np.argsort(x, axis=0, kind="stable").astype(np.int32))
