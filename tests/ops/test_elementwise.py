"""Elementwise primitives against numpy in float64, and their gradients."""

import math

import numpy as np
import pytest
from draws import every, in_turn, leaves, normal, refused, strided, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes, full
from boostr.autograd import gradcheck
from boostr.errors import DTypeError
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


PAIRS = (list(BINARY), [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 2)), ((0, 3), (3,))])


@pytest.mark.parametrize(("name", "shapes"), every(in_turn(*PAIRS), *PAIRS), ids=str)
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
    try:
        full((2,), 1, common, plain_backend)
    except DTypeError:
        with refused(DTypeError, "add", common):
            a + b
        return
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
