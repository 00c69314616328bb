"""The primitives against numpy in float64, and their gradients."""

import math

import numpy as np
import pytest
from draws import leaves, normal, refused, strided, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes, full
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core

POSITIVE = ("log", "sqrt", "rsqrt")
UNARY = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]), "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "floor": np.floor, "round": np.rint,
}  # fmt: skip
BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
           "gt": np.greater, "ge": np.greater_equal}  # fmt: skip
INTEGER = {
    "floor_div": np.floor_divide, "mod": np.mod, "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
}  # fmt: skip


def f64(x):
    return np.asarray(x).astype(np.float64)


# -- elementwise ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", UNARY)
def test_unary(name, backend, dtype, rng):
    x = normal(rng, (3, 7), dtype, 2.0)
    x = np.abs(x) + x.dtype.type(0.1) if name in POSITIVE else x
    got = getattr(core, name)(Tensor(strided(x), backend=backend))
    assert got.dtype == x.dtype and got.shape == x.shape
    assert_close(got.numpy(), UNARY[name](f64(x)), dtype=dtype, reduce=1)


@pytest.mark.parametrize("name", sorted(set(UNARY) - {"floor", "round"}))
def test_unary_gradient(name, backend64, rng):
    x = np.abs(normal(rng, (2, 3))) + 0.5
    sign = 1 if name in POSITIVE else np.where(rng.random((2, 3)) < 0.5, -1, 1)
    gradcheck(getattr(core, name), leaves(backend64, x * sign))


def test_unary_at_the_edges_is_ieee_and_silent(plain_backend):
    x = Tensor([0.0, -1.0, math.inf, -math.inf, 1000.0, -1000.0], backend=plain_backend)
    np.testing.assert_array_equal(
        core.log(x).numpy()[:3], np.array([-math.inf, math.nan, math.inf], np.float32)
    )
    assert core.exp(x).numpy()[4] == math.inf and core.exp(x).numpy()[5] == 0
    assert core.rsqrt(x).numpy()[0] == math.inf
    np.testing.assert_array_equal(core.sigmoid(x).numpy()[2:], [1, 0, 1, 0])
    np.testing.assert_array_equal(core.erf(x).numpy()[2:], [1, -1, 1, -1])


def test_unary_of_integers_is_real(plain_backend):
    assert core.exp(Tensor([0, 1], backend=plain_backend)).dtype == dtypes.float32


def test_logical_not(plain_backend):
    got = core.logical_not(Tensor([True, False], backend=plain_backend))
    assert got.tolist() == [False, True]


def test_sign(plain_backend):
    assert core.sign(Tensor([-2.0, 0.0, 3.0], backend=plain_backend)).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 2)), ((0, 3), (3,))])
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, shapes, backend, dtype, rng):
    a, b = (normal(rng, s, dtype) for s in shapes)
    b = b + b.dtype.type(5) if name == "div" else b
    got = getattr(core, name)(*tensors(backend, a, b))
    assert got.dtype == dtypes.parse(dtype)
    assert_close(got.numpy(), BINARY[name](f64(a), f64(b)), dtype=dtype, reduce=1)


@pytest.mark.parametrize("name", BINARY)
def test_binary_gradient(name, backend64, rng):
    a, b = normal(rng, (2, 3)), normal(rng, (2, 1)) + 3
    fn = getattr(core, name)
    gradcheck(fn, leaves(backend64, a, b))
    gradcheck(lambda x: fn(x, 1.5) + fn(2.5, x), leaves(backend64, np.abs(a) + 0.3))


def test_extrema_share_the_gradient_of_a_tie(backend64):
    a, b = leaves(backend64, np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    core.sum(core.maximum(a, b)).backward()
    assert a.grad.tolist() == [0.5, 1] and b.grad.tolist() == [0.5, 0]
    x = leaves(backend64, np.array([3.0, 3.0, 1.0]))[0]
    core.max(x).backward()
    assert x.grad.tolist() == [0.5, 0.5, 0]


def test_pow(backend, dtype, rng):
    a, b = np.abs(normal(rng, (5,), dtype)) + 1, normal(rng, (5,), dtype)
    got = core.pow(*tensors(backend, a, b)).numpy()
    assert_close(got, f64(a) ** f64(b), dtype=dtype, reduce=1)


def test_pow_gradient(backend64, rng):
    a, b = np.abs(normal(rng, (4,))) + 0.5, normal(rng, (4,))
    gradcheck(core.pow, leaves(backend64, a, b))
    gradcheck(lambda x: x**3 + 2.0**x, leaves(backend64, b))


@pytest.mark.parametrize("name", COMPARE)
def test_compare(name, plain_backend):
    a, b = np.array([1, 2, 3], np.int32), np.array([2, 2, 2], np.int32)
    got = getattr(core, name)(*tensors(plain_backend, a, b))
    assert got.dtype == dtypes.bool_
    np.testing.assert_array_equal(got.numpy(), COMPARE[name](a, b))


@pytest.mark.parametrize("name", INTEGER)
def test_integers(name, plain_backend):
    a, b = np.array([7, -7, 0, 12], np.int32), np.array([3, 3, 5, -5], np.int32)
    got = getattr(core, name)(*tensors(plain_backend, a, b))
    assert got.dtype == dtypes.int32
    np.testing.assert_array_equal(got.numpy(), INTEGER[name](a, b))


def test_shifts_and_overflow_of_uint32(plain_backend):
    x = Tensor(np.array([0xFFFFFFFF, 0x80000001], np.uint32), backend=plain_backend)
    assert (x >> 31).tolist() == [1, 1]
    assert (x << 1).tolist() == [0xFFFFFFFE, 2]
    assert (x * 3).tolist() == [0xFFFFFFFD, 0x80000003]
    assert (x + 1).tolist() == [0, 0x80000002]


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        ("bfloat16", "float32", "float32"),
        ("float16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("int32", "float32", "float64"),  # numpy's rule
        ("bool", "int32", "int32"),
    ],
)
def test_common_dtype(left, right, common, plain_backend):
    a, b = (full((2,), 1, d, plain_backend) for d in (left, right))
    assert (a + b).dtype == dtypes.parse(common)


def test_python_numbers_take_the_tensors_dtype(plain_backend):
    for name in ("bfloat16", "float16", "float32"):
        x = full((2,), 2, name, plain_backend)
        assert (x * 1.5).dtype == x.dtype and (1 - x).tolist() == [-1, -1]
    n = full((2,), 3, "int32", plain_backend)
    assert (n + 1).dtype == dtypes.int32
    assert (n * 0.5).dtype == dtypes.float32
    assert (n / 2).tolist() == [1.5, 1.5]


def test_numpy_operands(plain_backend):
    x = Tensor([1.0, 2.0], backend=plain_backend)
    for got in (x + np.float32([1, 1]), np.float32([1, 1]) + x):
        assert isinstance(got, Tensor) and got.tolist() == [2, 3]


def test_where(backend, dtype, rng):
    a, b = normal(rng, (2, 3), dtype), normal(rng, (3,), dtype)
    c = rng.random((2, 1)) < 0.5
    got = core.where(*tensors(backend, c, a, b))
    np.testing.assert_array_equal(got.numpy(), np.where(c, a, b))
    assert core.where(Tensor(c, backend=backend), Tensor(a, backend=backend), 0).dtype == a.dtype


def test_where_gradient(backend64, rng):
    c = Tensor(np.array([[True], [False]]), backend=backend64)
    a, b = leaves(backend64, normal(rng, (2, 3)), normal(rng, (3,)))
    gradcheck(lambda a, b: core.where(c, a, b), [a, b])


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16", "int8", "int32", "bool"])
def test_cast(target, plain_backend):
    x = np.array([0.0, 1.0, -2.0, 3.0], np.float32)
    got = Tensor(x, backend=plain_backend).to(target)
    np.testing.assert_array_equal(got.numpy(), x.astype(dtypes.parse(target)))


def test_cast_rounds_to_even(plain_backend):
    x = Tensor(np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32), backend=plain_backend)
    assert x.to("bf16").to("f32").tolist() == [1.0, 1 + 2**-6]


def test_cast_gradient(backend64, rng):
    x = leaves(backend64, normal(rng, (3,)))[0]
    core.sum(x.to("float32") * 2.0).backward()
    assert x.grad.dtype == dtypes.float64 and x.grad.tolist() == [2, 2, 2]


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


@pytest.mark.parametrize(
    "key",
    [
        2, -1, slice(1, None), slice(None, None, -1), slice(3, 0, -2), ..., None,
        (0, slice(None), 1), (..., 0), (slice(None), None, 1), (1, ..., None), (0, 0, 0),
        slice(5, 9),
    ],
    ids=str,
)  # fmt: skip
def test_index(key, plain_backend, rng):
    x = normal(rng, (4, 3, 2))
    np.testing.assert_array_equal(Tensor(x, backend=plain_backend)[key].numpy(), x[key])


def test_index_by_integers(plain_backend, rng):
    x, i = normal(rng, (4, 3)), np.array([2, 2, 0], np.int32)
    t = Tensor(x, backend=plain_backend)
    for key in (i, i.tolist(), Tensor(i, backend=plain_backend)):
        np.testing.assert_array_equal(t[key].numpy(), x[i])


@pytest.mark.parametrize("key", [1, slice(None, None, -2), (..., 1), (slice(1, 3), None)], ids=str)
def test_index_gradient(key, backend64, rng):
    gradcheck(lambda x: x[key], leaves(backend64, normal(rng, (4, 3))))


# -- views ---------------------------------------------------------------------------------------
def test_views_share_memory(plain_backend, rng):
    x = Tensor(normal(rng, (4, 6)), backend=plain_backend)
    views = [x.reshape(2, 12), x.T, x[1:], x[:, ::2], x.reshape(4, 2, 3).permute(1, 0, 2)]
    x.assign(np.zeros((4, 6), np.float32))
    assert not any(np.any(v.numpy()) for v in views)


def test_reshape_of_a_strided_view_copies(plain_backend, rng):
    x = normal(rng, (4, 6))
    got = Tensor(x, backend=plain_backend).T.reshape(8, 3)
    np.testing.assert_array_equal(got.numpy(), x.T.reshape(8, 3))


def test_contiguous_copies_only_what_is_not(plain_backend, rng):
    x = Tensor(normal(rng, (4, 6)), backend=plain_backend)
    y = x.T.contiguous()
    assert plain_backend.is_contiguous(y.data) and not plain_backend.is_contiguous(x.T.data)
    assert full((), 3, backend=plain_backend).contiguous().shape == ()
    copied = plain_backend.copy(x.data)
    x.assign(np.zeros((4, 6), np.float32))
    assert np.all(Tensor.wrap(copied, plain_backend).numpy() != 0)


def test_views_gradient(backend64, rng):
    x = normal(rng, (2, 3, 2))
    for fn in (
        lambda x: x.reshape(3, -1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x.transpose(),
        lambda x: x.T.contiguous(),
        lambda x: x.flatten().unsqueeze(-1).broadcast_to(12, 2),
        lambda x: x[:1].squeeze(0),
        lambda x: core.concat([x, x * 2], 1),
        lambda x: core.concat(core.split(x, [1, 2], 1)[::-1], 1),
    ):
        gradcheck(fn, leaves(backend64, x))


def test_concat_and_split(backend, dtype, rng):
    a, b = normal(rng, (2, 3), dtype), normal(rng, (2, 1), dtype)
    whole = core.concat(tensors(backend, a, b), -1)
    np.testing.assert_array_equal(whole.numpy(), np.concatenate([a, b], 1))
    for part, want in zip(core.split(whole, [3, 1], -1), (a, b), strict=True):
        np.testing.assert_array_equal(part.numpy(), want)


def test_bitcast(plain_backend):
    x = Tensor(np.array([[1.0, -2.0]], np.float32), backend=plain_backend)
    assert core.bitcast(x, "uint32").tolist() == [[0x3F800000, 0xC0000000]]
    assert core.bitcast(x, "uint8").shape == (1, 8)
    assert core.bitcast(core.bitcast(x, "uint16"), "float32").tolist() == [[1, -2]]


# -- refusals ------------------------------------------------------------------------------------
A, I3 = (2, 3), [0, 1, 2]
REFUSED = [
    (ShapeError, ("add", "[2, 3]", "[2]"), lambda x: x + x[:, 0]),
    (DTypeError, ("add", "str"), lambda x: x + "one"),
    (DTypeError, ("mul", "Tensor"), lambda x: core.mul(1, 2)),
    (ShapeError, ("where", "[2, 3]", "[4]"), lambda x: core.where(x > 0, x, core.concat([x[0], x[0, :1]]))),
    (DTypeError, ("where", "bool", "float32"), lambda x: core.where(x, x, 0)),
    (DTypeError, ("where", "condition", "bool"), lambda x: core.where(True, x, 0)),
    (ShapeError, ("where", "[2, 3]", "[4]"), lambda x: core.where(full((4,), 1, "bool", x.backend), x, 0)),
    (ShapeError, ("sum", "axis 2", "2 axes"), lambda x: core.sum(x, 2)),
    (ShapeError, ("argmax", "axis -3", "2 axes"), lambda x: core.argmax(x, -3)),
    (ShapeError, ("max", "[2, 0]"), lambda x: core.max(x[:, :0], 1)),
    (ShapeError, ("mean", "[2, 0]"), lambda x: core.mean(x[:, :0])),
    (ShapeError, ("argmax", "[2, 0]"), lambda x: core.argmax(x[:, :0])),
    (ShapeError, ("matmul", "[2, 3] @ [2, 3]"), lambda x: x @ x),
    (ShapeError, ("matmul", "M, K]", "[3]"), lambda x: x @ x[0]),
    (ShapeError, ("matmul", "broadcast"), lambda x: full((2, 2, 3), 1) @ full((3, 3, 2), 1)),
    (DTypeError, ("matmul", "float32", "bfloat16"), lambda x: x @ x.T.to("bf16")),
    (DTypeError, ("matmul", "Tensor", "ndarray"), lambda x: x @ np.zeros((3, 2))),
    (DTypeError, ("take", "integers", "float32"), lambda x: core.take(x, x)),
    (ShapeError, ("take", "axis 2"), lambda x: core.take(x, Tensor(I3), 2)),
    (ShapeError, ("take_along", "[2, 3]", "[3]"), lambda x: core.take_along(x, Tensor(I3))),
    (ShapeError, ("take_along", "[2, 3]", "[1, 3]"), lambda x: core.take_along(x, Tensor([I3]), 1)),
    (DTypeError, ("take_along", "integers"), lambda x: core.take_along(x, x)),
    (DTypeError, ("scatter_add", "integers"), lambda x: core.scatter_add(A, x, x)),
    (ShapeError, ("scatter_add", "[N]", "[3]"), lambda x: core.scatter_add(A, Tensor(I3), x)),
    (ShapeError, ("scatter_add", "4]", "[2, 3]"), lambda x: core.scatter_add((4, 4), Tensor([0, 1]), x)),
    (ShapeError, ("reshape", "[2, 3]", "[4]"), lambda x: x.reshape(4)),
    (ShapeError, ("reshape", "[-1, -1]"), lambda x: x.reshape(-1, -1)),
    (ShapeError, ("reshape", "[-1, 4]"), lambda x: x.reshape(-1, 4)),
    (ShapeError, ("permute", "(0, 0)"), lambda x: x.permute(0, 0)),
    (ShapeError, ("permute", "(0, 3)", "2 axes"), lambda x: x.permute(0, 3)),
    (ShapeError, ("transpose", "axis 2", "2 axes"), lambda x: x.transpose(0, 2)),
    (ShapeError, ("broadcast_to", "[2, 3]", "[3, 3]"), lambda x: x.broadcast_to(3, 3)),
    (ShapeError, ("squeeze", "length 2"), lambda x: x.squeeze(0)),
    (ShapeError, ("squeeze", "axis 2", "2 axes"), lambda x: x.squeeze(2)),
    (ShapeError, ("unsqueeze", "axis 4", "3 axes"), lambda x: x.unsqueeze(4)),
    (ShapeError, ("index", "3", "2 axes"), lambda x: x[0, 0, 0]),
    (DTypeError, ("index", "str"), lambda x: x["a"]),
    (DTypeError, ("take", "bool"), lambda x: x[np.array([True, False])]),
    (ShapeError, ("concat", "one tensor"), lambda x: core.concat([])),
    (ShapeError, ("concat", "axis 1", "float32[2, 3]", "float32[1, 3]"), lambda x: core.concat([x, x[:1]], 1)),
    (ShapeError, ("concat", "axis 2", "2 axes"), lambda x: core.concat([x, x], 2)),
    (ShapeError, ("split", "[1, 1]", "3"), lambda x: core.split(x, [1, 1], 1)),
    (ShapeError, ("split", "axis 2", "2 axes"), lambda x: core.split(x, [1, 1], 2)),
    (ShapeError, ("bitcast", "float64", "3"), lambda x: core.bitcast(x, "float64")),
    (DTypeError, ("float8_e9", "known"), lambda x: x.to("float8_e9")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words", "call"), REFUSED, ids=[f"{i}-{w[0]}" for i, (_, w, _) in enumerate(REFUSED)]
)
def test_refuses(error, words, call, rng):
    with refused(error, *words):
        call(Tensor(normal(rng, A), backend="numpy"))


def test_index_outside_is_an_index_error(plain_backend):
    x = full((2, 3), 0, backend=plain_backend)
    with pytest.raises(IndexError, match=r"index: 3 .* axis 1 of length 3"):
        x[0, 3]
    assert len(list(x)) == 2  # the old iteration protocol ends at the IndexError
