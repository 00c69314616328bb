"""Reductions, products, indexing and writing in place of the wgpu backend: chunks, odd widths,
every way that a target can lie. Memory is dirty in all of these tests."""

import numpy as np
import pytest
from draws import normal
from strict_wgpu import strict_wgpu
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.backends.wgpu.primitives import primitives_matmul, primitives_reduce
from boostr.ops import core


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


# -- reductions ----------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2), (1,), (0, 1, 3), 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_reductions_in_chunks(axis, dtype, wgpu, rng, monkeypatch):
    """Chunks of a few terms, so that partial results are reduced again."""
    monkeypatch.setattr(primitives_reduce, "_ROW_CHUNK", 16)
    monkeypatch.setattr(primitives_reduce, "_COLUMN_CHUNK", 3)
    whole = "int" in dtype
    draw = rng.integers(-100, 100, (5, 9, 3, 48)) if whole else normal(rng, (5, 9, 3, 48))
    x = draw.astype(dtypes.parse(dtype))
    for t, v in (
        (Tensor(x, backend=wgpu), x),
        (Tensor(x, backend=wgpu).permute(3, 0, 2, 1), x.transpose(3, 0, 2, 1)),
    ):
        for name in ("sum", "max", "min"):
            got, want = getattr(core, name)(t, axis), getattr(np, name)(v.astype(np.float64), axis)
            if name == "sum" and not whole:
                assert_close(got.numpy(), want, dtype=dtype, reduce=v.size // max(want.size, 1))
            else:
                same(got, want)


@pytest.mark.parametrize("shape", [(1, 100_000), (3, 20_001), (40_000, 3), (2000, 64), (5, 2048)])
def test_long_sums(shape, wgpu, rng):
    x = normal(rng, shape)
    t = Tensor(x, backend=wgpu)
    for axis in (None, 0, 1):
        want = x.astype(np.float64).sum(axis)
        assert_close(core.sum(t, axis).numpy(), want, dtype="float32", reduce=x.size // want.size)


@pytest.mark.parametrize("n", [1, 5, 33, 300, 20_000])
def test_argmax_of_long_rows(n, wgpu, rng):
    x = rng.integers(-50, 50, (3, n)).astype(np.float32)
    t = Tensor(x, backend=wgpu)
    same(core.argmax(t), x.argmax(1).astype(np.int32))
    same(core.argmax(t.T, 0), x.argmax(1).astype(np.int32))


@pytest.mark.parametrize(("rows", "n"), [(3, 1), (2, 31), (3, 129), (2, 700), (1, 5000)])
def test_sorts(rows, n, wgpu, rng):
    for x in (normal(rng, (rows, n)), rng.integers(-4, 4, (rows, n)).astype(np.int32)):
        got = core.argsort(Tensor(x, backend=wgpu), 1)
        same(got, np.argsort(x, axis=1, kind="stable").astype(np.int32))
        same(core.argsort(Tensor(np.ascontiguousarray(x.T), backend=wgpu), 0).T, got.numpy())


@pytest.mark.parametrize("n", [1, 7, 8, 511, 1032, 5003])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8"])
def test_running_sums(n, dtype, wgpu, rng):
    x = normal(rng, (2, n), scale=0.1) if "float" in dtype else rng.integers(0, 3, (2, n))
    x = x.astype(dtypes.parse(dtype))
    t = Tensor(x, backend=wgpu)
    if "float" in dtype:
        want = np.cumsum(x.astype(np.float64), 1)
        assert_close(core.cumsum(t).numpy(), want, dtype=dtype, reduce=n, scale=0.1)
        assert_close(core.cumsum(t.T, 0).numpy().T, want, dtype=dtype, reduce=n, scale=0.1)
    else:
        same(core.cumsum(t), np.cumsum(x, 1, dtype=x.dtype))


# -- products ------------------------------------------------------------------------------------
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_products_of_any_strides(tiled, dtype, wgpu, rng):
    a, b = (
        rng.integers(-3, 4, s).astype(dtypes.parse(dtype)) for s in ((2, 1, 67, 19), (3, 19, 70))
    )
    for turn in (False, True):
        left = Tensor(np.ascontiguousarray(a.swapaxes(-1, -2)) if turn else a, backend=wgpu)
        left = left.transpose() if turn else left
        got = primitives_matmul.product(wgpu, left.data, Tensor(b, backend=wgpu).data, tiled)
        want = (a.astype(np.float64) @ b.astype(np.float64)).astype(a.dtype)
        same(Tensor.wrap(got, wgpu), want)


# -- indexing and writing in place ---------------------------------------------------------------
@pytest.mark.parametrize("inner", [1, 3, 8, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_entries_by_number(inner, dtype, wgpu, rng):
    x, i = numbers(rng, (11, inner), dtype), np.array([[3, -1, 0], [10, 3, -11]], np.int32)
    t = Tensor(x, backend=wgpu)
    for index in (i, (i % 11).astype(np.uint8)):
        same(core.take(t, Tensor(index, backend=wgpu)), x[i])
        same(core.take(t.T, Tensor(index, backend=wgpu), 1), x.T[:, i])
    along = rng.integers(-11, 11, (5, inner)).astype(np.int32)
    want = np.take_along_axis(x, along.astype(np.int64), 0)
    same(core.take_along(t, Tensor(along, backend=wgpu), 0), want)
    same(core.take_along(t.T, Tensor(np.ascontiguousarray(along.T), backend=wgpu), 1), want.T)


def test_scattered_sums(wgpu, rng):
    rows, i = normal(rng, (300, 5)), rng.integers(0, 7, 300).astype(np.int32)
    want = np.zeros((8, 5))
    np.add.at(want, i, rows.astype(np.float64))
    tensors = [Tensor(v, backend=wgpu) for v in (i, rows)]
    got = core.scatter_add((8, 5), *tensors).numpy()
    assert_close(got, want, dtype="float32", reduce=300 / 8)
    np.testing.assert_array_equal(core.scatter_add((8, 5), *tensors).numpy(), got)
    for dtype in ("float32", "bfloat16", "int8"):
        wide, j = numbers(rng, (40, 32), dtype), rng.integers(0, 300, 40).astype(np.uint8)
        want = np.zeros((300, 32))
        np.add.at(want, j, wide.astype(np.float64))
        got = core.scatter_add((300, 32), *(Tensor(v, backend=wgpu) for v in (j, wide)))
        same(got, want.astype(wide.dtype))
    counts = core.scatter_add((3, 1), Tensor(np.int32([2, -1, 0]), backend=wgpu),
                              Tensor(np.int8([[1], [2], [3]]), backend=wgpu))  # fmt: skip
    assert counts.tolist() == [[3], [0], [3]]


TARGETS = {
    "whole": lambda x: x,
    "rows": lambda x: x[3:5],
    "odd columns": lambda x: x[:, 1:4],
    "aligned columns": lambda x: x[:, 8:24],
    "backwards": lambda x: x[::-2, 30:2:-3],
    "turned": lambda x: x.T[2:9],
    "one": lambda x: x[2:3, 7:8],
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bool"])
def test_assigned_views(name, dtype, wgpu, rng):
    x = numbers(rng, (6, 34), dtype)
    t = Tensor(x.copy(), backend=wgpu)
    part = TARGETS[name](x)
    for source in ("int32", dtype):
        new = (np.arange(part.size).reshape(part.shape) % 2).astype(dtypes.parse(source))
        part[...] = new
        TARGETS[name](t).assign(Tensor(new, backend=wgpu))
        same(t, x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_long_odd_rows_assigned(dtype, wgpu, rng):
    """Whole vectors at once, then what is left."""
    x, new = numbers(rng, (3, 624), dtype), numbers(rng, (2, 301), dtype)
    t = Tensor(x.copy(), backend=wgpu)
    t[1:, 320:621].assign(Tensor(new, backend=wgpu))
    t[0, :301].assign(Tensor(new[1], backend=wgpu))
    x[1:, 320:621], x[0, :301] = new, new[1]
    same(t, x)


def test_assigned_to_itself(wgpu, rng):
    for dtype in ("float32", "bfloat16"):
        x = numbers(rng, (5, 7), dtype)
        t = Tensor(x.copy(), backend=wgpu)
        t[1:].assign(t[:-1])
        x[1:] = x[:-1].copy()
        same(t, x)


@pytest.mark.parametrize("inner", [(3,), (8,), (2, 8), ()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_rows_put_by_number(inner, dtype, wgpu, rng):
    room = numbers(rng, (9, *inner, 2), dtype)
    for at in (slice(None), 0):
        x = room[..., 0] if at == 0 else room
        t = Tensor(room, backend=wgpu)
        target = t[..., 0] if at == 0 else t
        i = np.array([4, -1, 8, 0], np.int32)
        values = numbers(rng, (4, *x.shape[1:]), dtype) + x.dtype.type(1)
        wgpu.put_rows(target.data, Tensor(i, backend=wgpu).data, Tensor(values, backend=wgpu).data)
        want = x.copy()
        want[i[i >= 0]] = values[i >= 0]
        same(target, want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("width", [3, 16])
def test_concat_of_odd_widths(dtype, width, wgpu, rng):
    parts = [numbers(rng, (5, n), dtype) for n in (width, 1, 2 * width)]
    for axis, arrays in ((1, parts), (0, [p.T for p in parts])):
        got = core.concat([Tensor(p, backend=wgpu) for p in arrays], axis)
        same(got, np.concatenate(arrays, axis))
