"""rms_norm and layer_norm against the oracle, with and without the residual add."""

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import every, in_turn, leaves, normal, refused, strided, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core
from boostr.ops.norm import layer_norm, rms_norm

SHAPES = [(5, 64), (1, 576), (3, 2, 33), (0, 16), (7, 1), (2, 1000)]
RMS, LAYER = (SHAPES, (0.0, 1.0), (False, True)), (SHAPES, (False, True), (False, True))


@pytest.mark.parametrize(("shape", "offset", "residual"), every(in_turn(*RMS), *RMS), ids=str)
def test_rms_norm(shape, offset, residual, backend, dtype, rng):
    x, r = normal(rng, shape, dtype), normal(rng, shape, dtype) if residual else None
    w = normal(rng, shape[-1:], dtype)
    tx, tw, tr = tensors(backend, strided(x), w, r)
    got = rms_norm(tx, tw, eps=1e-5, residual=tr, weight_offset=offset)
    y, h = oracles.rms_norm(x, w, 1e-5, r, offset)
    check_norm(got, y, h, residual, dtype)


@pytest.mark.parametrize(("shape", "bias", "residual"), every(in_turn(*LAYER), *LAYER), ids=str)
def test_layer_norm(shape, bias, residual, backend, dtype, rng):
    x, r = normal(rng, shape, dtype), normal(rng, shape, dtype) if residual else None
    w, b = normal(rng, shape[-1:], dtype), normal(rng, shape[-1:], dtype) if bias else None
    if shape[-1] == 1 and residual:
        pytest.skip("x - mean(x) of one element is only the rounding of x")
    tx, tw, tb, tr = tensors(backend, x, w, b, r)
    got = layer_norm(tx, tw, tb, eps=1e-5, residual=tr)
    y, h = oracles.layer_norm(x, w, b, 1e-5, r)
    check_norm(got, y, h, residual, dtype)


def check_norm(got, y, h, residual, dtype):
    if residual:
        got, total = got
        assert_close(total.numpy(), h, dtype=dtype, reduce=1)
    assert got.dtype == dtypes.parse(dtype)
    # three roundings of 16 bits with a residual: of h, of its image under the weight, of the result
    c = 4.0 if residual and dtypes.parse(dtype).itemsize == 2 else None
    assert_close(got.numpy(), y, dtype=dtype, reduce=1, c=c)


def test_statistics_are_float32(backend):
    """Squares of 300 overflow float16; the sum of 4096 ones stops at 256 in bfloat16."""
    for name, value in (("float16", 300.0), ("bfloat16", 1.0)):
        x, w = (np.full((1, 4096), v, dtypes.parse(name)) for v in (value, 1.0))
        got = rms_norm(*tensors(backend, x, w[0]))
        assert_close(got.numpy(), np.ones((1, 4096)), dtype=name, reduce=1)


def test_weight_of_another_dtype(backend, rng):
    x, w = normal(rng, (3, 16), "bfloat16"), normal(rng, (16,))
    got = rms_norm(*tensors(backend, x, w))
    assert got.dtype == dtypes.bfloat16
    assert_close(got.numpy(), oracles.rms_norm(x, w)[0], dtype="bfloat16", reduce=1)


def test_constant_rows_give_the_bias(backend):
    x, w, b = np.full((2, 8), 3.0, np.float32), np.ones(8, np.float32), np.arange(8.0)
    got = layer_norm(*tensors(backend, x, w, b.astype(np.float32)))
    np.testing.assert_array_equal(got.numpy(), np.broadcast_to(b, (2, 8)))


def test_rms_norm_gradient(backend64, rng):
    x, r, w = (normal(rng, s) for s in ((3, 5), (3, 5), (5,)))
    gradcheck(lambda x, w: rms_norm(x, w, weight_offset=1.0), leaves(backend64, x, w))
    for i in (0, 1):
        gradcheck(lambda x, r, w, i=i: rms_norm(x, w, residual=r)[i], leaves(backend64, x, r, w))
    both = leaves(backend64, x, r, w)
    gradcheck(lambda x, r, w: (lambda y, h: y * h)(*rms_norm(x, w, residual=r)), both)


def test_layer_norm_gradient(backend64, rng):
    x, r, w, b = (normal(rng, s) for s in ((3, 5), (3, 5), (5,), (5,)))
    gradcheck(layer_norm, leaves(backend64, x, w))
    gradcheck(layer_norm, leaves(backend64, x, w, b))
    for i in (0, 1):
        gradcheck(
            lambda x, r, w, b, i=i: layer_norm(x, w, b, residual=r)[i],
            leaves(backend64, x, r, w, b),
        )


OPS = (("rms_norm", "layer_norm"), (False, True))


@pytest.mark.parametrize(("op", "residual"), every(in_turn(*OPS), *OPS))
def test_gradient_of_every_dtype(op, residual, backend, dtype, rng):
    N, E = 9, 40
    x, r, g, p = (normal(rng, (N, E), dtype) for _ in range(4))
    w, b = (normal(rng, (E,), dtype) for _ in range(2))
    r = r if residual else None
    leaf = [None if a is None else Tensor(a, backend=backend, requires_grad=True)
            for a in (x, r, w, b)]  # fmt: skip
    tg, tp = tensors(backend, g, p)
    h = x if r is None else (Tensor(x, backend=backend) + Tensor(r, backend=backend)).numpy()
    if op == "rms_norm":
        out = rms_norm(leaf[0], leaf[2], eps=1e-5, residual=leaf[1], weight_offset=1.0)
        want = [*oracles_rows.rms_norm_backward(g, h, w, 1e-5, 1.0), None]
        leaf[3] = None
    else:
        out = layer_norm(leaf[0], leaf[2], leaf[3], eps=1e-5, residual=leaf[1])
        want = list(oracles_rows.layer_norm_backward(g, h, w, 1e-5))
    if residual:
        joint = core.sum(out[0] * tg) + core.sum(out[1] * tp)
        joint.backward()
        want[0] = want[0] + p.astype(np.float64)
    else:
        out.backward(tg)
    want.insert(1, want[0] if residual else None)
    for a, truth in zip(leaf, want, strict=True):
        if a is not None:
            assert a.grad.dtype == dtypes.parse(dtype)
            reduce = N if truth.ndim == 1 else 1
            assert_close(a.grad.numpy(), truth, dtype=dtype, reduce=reduce, scale=3)


def test_residual_that_is_x_itself(backend64, rng):
    gradcheck(lambda x, w: rms_norm(x, w, residual=x)[0], leaves(backend64, *(
        normal(rng, s) for s in ((2, 4), (4,)))))  # fmt: skip


@pytest.mark.parametrize("op", [rms_norm, layer_norm])
def test_refuses(op, rng):
    x, w = tensors("numpy", normal(rng, (2, 4)), normal(rng, (4,)))
    name = op.__name__
    with refused(DTypeError, name, "float", "int32"):
        op(x.to("int32"), w)
    with refused(ShapeError, name, "scalar"):
        op(x[0, 0], w)
    with refused(ShapeError, name, "weight", "[4]", "[3]"):
        op(x, w[:3])
    with refused(ShapeError, name, "residual", "float32[2, 4]", "float32[1, 4]"):
        op(x, w, residual=x[:1])
    with refused(ShapeError, name, "residual", "float32[2, 4]", "bfloat16[2, 4]"):
        op(x, w, residual=x.to("bf16"))
    with refused(ShapeError, "layer_norm", "bias", "[4]", "[2]"):
        layer_norm(x, w, w[:2])
