"""Activations and softmax against the oracle."""

import math

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import leaves, normal, refused, strided, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import activation

ONE = {
    "silu": (activation.silu, oracles.silu),
    "relu": (activation.relu, lambda x: np.maximum(np.asarray(x, np.float64), 0)),
    "gelu": (activation.gelu, oracles.gelu),
    "gelu-tanh": (lambda x: activation.gelu(x, "tanh"), lambda x: oracles.gelu(x, "tanh")),
}
TWO = {
    "swiglu": (activation.swiglu, oracles.swiglu),
    "geglu": (activation.geglu, oracles.geglu),
    "geglu-tanh": (
        lambda g, u: activation.geglu(g, u, "tanh"),
        lambda g, u: oracles.geglu(g, u, "tanh"),
    ),
}
SHAPES = [(3, 64), (0, 5), (1, 1), (2, 3, 33), (4, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ONE)
def test_activation(name, shape, backend, dtype, rng):
    fn, truth = ONE[name]
    x = normal(rng, shape, dtype, 3.0)
    got = fn(Tensor(strided(x), backend=backend))
    assert got.dtype == x.dtype
    assert_close(got.numpy(), truth(x.astype(np.float64)), dtype=dtype, reduce=1)


@pytest.mark.parametrize("name", ONE)
def test_activation_of_large_inputs(name, backend):
    fn, truth = ONE[name]
    x = np.array([-1e4, -100, -20, 0, 20, 100, 1e4], np.float32)
    assert_close(fn(Tensor(x, backend=backend)).numpy(), truth(x), dtype="float32", reduce=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TWO)
def test_gated(name, shape, backend, dtype, rng):
    fn, truth = TWO[name]
    gate, up = normal(rng, shape, dtype, 2.0), normal(rng, shape, dtype)
    got = fn(*tensors(backend, strided(gate), up))
    assert got.dtype == gate.dtype
    want = truth(gate.astype(np.float64), up)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=3.0)


@pytest.mark.parametrize("name", ONE)
def test_activation_gradient(name, backend64, rng):
    gradcheck(ONE[name][0], leaves(backend64, normal(rng, (3, 4), scale=2.0)))


@pytest.mark.parametrize("name", TWO)
def test_gated_gradient(name, backend64, rng):
    gradcheck(TWO[name][0], leaves(backend64, normal(rng, (2, 3)), normal(rng, (2, 3))))


SLOPES = {
    "silu": oracles_rows.silu_slope,
    "gelu": oracles_rows.gelu_slope,
    "gelu-tanh": lambda x: oracles_rows.gelu_slope(x, "tanh"),
}


@pytest.mark.parametrize("name", SLOPES)
def test_gradient_of_every_dtype(name, backend, dtype, rng):
    """Of f(x) and of f(gate) · up, at usual and at large inputs."""
    x, up, g = (normal(rng, (5, 33), dtype, s) for s in (3.0, 1.0, 1.0))
    x[0, :4] = [-100, -15, 15, 100]
    wx, wu, wg = (a.astype(np.float64) for a in (x, up, g))
    fn, truth = ONE[name]
    one = Tensor(x, backend=backend, requires_grad=True)
    fn(one).backward(Tensor(g, backend=backend))
    slope = SLOPES[name](wx)
    assert_close(one.grad.numpy(), wg * slope, dtype=dtype, reduce=1)
    gate, other = (Tensor(a, backend=backend, requires_grad=True) for a in (x, up))
    gated = TWO[{"silu": "swiglu", "gelu": "geglu", "gelu-tanh": "geglu-tanh"}[name]][0]
    gated(gate, other).backward(Tensor(g, backend=backend))
    assert_close(gate.grad.numpy(), wg * slope * wu, dtype=dtype, reduce=1, scale=3)
    assert_close(other.grad.numpy(), wg * truth(wx), dtype=dtype, reduce=1, scale=3)
    again = activation.GATED_AGAIN[name.replace("-", "_")](*tensors(backend, g, x, up))
    alone = gated(*tensors(backend, x, up))
    for found, part in zip(again, (gate.grad, other.grad, alone), strict=True):
        assert found.dtype == part.dtype
        assert_close(found.numpy(), part.numpy(), dtype=dtype, reduce=1)


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, scale, axis, backend, dtype, rng):
    x = normal(rng, (5, 7, 65), dtype, scale)
    got = getattr(activation, name)(Tensor(strided(x), backend=backend), axis)
    assert got.dtype == x.dtype
    want = getattr(oracles, name)(x.astype(np.float64), axis)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=1.0 + (name != "softmax") * scale)


def test_masked_softmax(backend):
    x = np.array([[0, -math.inf, 0], [-math.inf] * 3], np.float32)
    got = activation.softmax(Tensor(x, backend=backend))
    assert got.tolist() == [[0.5, 0, 0.5], [0, 0, 0]]


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_gradient(name, axis, backend64, rng):
    gradcheck(lambda x: getattr(activation, name)(x, axis), leaves(backend64, normal(rng, (3, 4))))


def test_refuses(rng):
    x = Tensor(normal(rng, (2, 3)), backend="numpy")
    n = x.to("int32")
    for name in ("silu", "gelu", "softmax", "log_softmax"):
        with refused(DTypeError, name, "float", "int32"):
            getattr(activation, name)(n)
    for name in ("softmax", "log_softmax"):
        with refused(ShapeError, name, "axis 2", "2 axes"):
            getattr(activation, name)(x, 2)
    for name in ("swiglu", "geglu"):
        with refused(ShapeError, name, "float32[2, 3]", "float32[2, 2]"):
            getattr(activation, name)(x, x[:, 1:])
        with refused(ShapeError, name, "float32[2, 3]", "float16[2, 3]"):
            getattr(activation, name)(x, x.to(dtypes.float16))
        with refused(DTypeError, name, "float", "int32"):
            getattr(activation, name)(n, n)
    with refused(OptionError, "gelu", "tanh", "'erf'"):
        activation.gelu(x, "erf")
    with refused(OptionError, "geglu", "tanh", "'erf'"):
        activation.geglu(x, x, "erf")
