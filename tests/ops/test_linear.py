"""linear on every stored form of the weight, against the oracle on the decoded one."""

from importlib import import_module

import numpy as np
import oracles
import packed
import pytest
from draws import every, in_turn, large, leaves, normal, refused, strided, tensors
from ops.linear_cases import product
from tolerance import assert_close, rms

from boostr import Tensor, dtypes, no_grad
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, ShapeError
from boostr.operands import LowRank
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize, quantize
from boostr.quant.scheme import SCHEMES

SHAPES = [(5, 100, 7), (1, 64, 64), (3, 96, 33), (17, 576, 48), (0, 32, 8), (2, 1, 1)]
GROUPED = ("int8", "int8-g32", "int8-g64", "int8-g128")
FLOAT, INT8 = (SHAPES, ("float32", "float16", "bfloat16")), (SHAPES, GROUPED)


def decoded(scheme, parts):
    q, s = (parts[name].numpy() for name in ("codes", "scales"))
    return oracles.dequantize_int8(q, s, SCHEMES[scheme].group_size or None)


def close(got, want, x, w, dtype, c=None):
    assert got.dtype == dtypes.parse(dtype)
    K = np.shape(w)[1]
    assert_close(got.numpy(), want, dtype=dtype, reduce=K, scale=rms(x) * rms(w), c=c)


@pytest.mark.parametrize(("shape", "stored"), every(in_turn(*FLOAT), *FLOAT), ids=str)
def test_float_weights(shape, stored, backend, dtype, rng):
    T, K, N = shape
    x, w = normal(rng, (T, K), dtype), normal(rng, (N, K), stored)
    got = linear(*tensors(backend, x, w))
    close(got, oracles.linear(x, w), x, w, dtype)


@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_bias_and_residual(lead, backend, dtype, rng):
    x, w = normal(rng, (*lead, 64), dtype), normal(rng, (16, 64), dtype)
    b, r = normal(rng, (16,), dtype), normal(rng, (*lead, 16), dtype)
    want = oracles.linear(x.astype(np.float64), w, b)
    tx, tw, tb, tr = tensors(backend, x, w, b, r)
    close(linear(tx, tw, tb), want, x, w, dtype)
    close(linear(tx, tw, tb, tr), want + r.astype(np.float64), x, w, dtype)
    close(linear(tx, tw, None, tr), want - b.astype(np.float64) + r.astype(np.float64), x, w, dtype)


def test_strided_inputs(backend, dtype, rng):
    x, w = normal(rng, (4, 64), dtype), normal(rng, (8, 64), dtype)
    got = linear(*tensors(backend, strided(x), strided(w)))
    close(got, oracles.linear(x, w), x, w, dtype)
    turned = Tensor(np.ascontiguousarray(w.T), backend=backend).T
    close(linear(Tensor(x, backend=backend), turned), oracles.linear(x, w), x, w, dtype)


def test_long_sums(backend, rng):
    x, w = normal(rng, (2, 8192)), normal(rng, (3, 8192), "bfloat16")
    close(linear(*tensors(backend, x, w)), oracles.linear(x, w), x, w, "float32")


def test_no_columns(backend, rng):
    x, w, b = normal(rng, (2, 3, 0)), normal(rng, (5, 0)), normal(rng, (5,))
    got = linear(*tensors(backend, x, w, b)).numpy()
    np.testing.assert_array_equal(got, np.broadcast_to(b, (2, 3, 5)))


def test_weights_in_bands(backend, rng, monkeypatch):
    monkeypatch.setattr(import_module("boostr.ops.linear"), "_CHUNK", 64 * 3)
    x, w = normal(rng, (2, 64)), normal(rng, (10, 64), "bfloat16")
    close(linear(*tensors(backend, x, w)), oracles.linear(x, w), x, w, "float32")
    q = quantize(Tensor(w, backend=backend), "int8-g32")
    got, truth = linear(Tensor(x, backend=backend), q), decoded("int8-g32", q.parts)
    c, scale = packed.product_c(backend, q.scheme, 2), rms(x) * rms(truth)
    want = oracles.linear(x, truth)
    assert_close(got.numpy(), want, dtype="float32", reduce=64, scale=scale, c=c)


@pytest.mark.parametrize(("shape", "scheme"), every(in_turn(*INT8), *INT8), ids=str)
def test_int8_weights(shape, scheme, backend, dtype, rng):
    T, K, N = shape
    x, b = normal(rng, (T, K), dtype), normal(rng, (N,))
    w = quantize(Tensor(normal(rng, (N, K)), backend=backend), scheme)
    got = linear(Tensor(x, backend=backend), w, Tensor(b, backend=backend))
    truth = decoded(scheme, w.parts)
    # the decoded weight is rounded to float32: for float64 inputs that is the precision
    precision = "float32" if dtype == "float64" else dtype
    assert got.dtype == x.dtype
    want = oracles.linear(x.astype(np.float64), truth, b)
    c = packed.product_c(backend, w.scheme, T) if dtype == "float32" else None
    assert_close(got.numpy(), want, dtype=precision, reduce=K, scale=rms(x) * rms(truth), c=c)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w8a8(shape, backend, rng):
    T, K, N = shape
    x, b = normal(rng, (T, K)), normal(rng, (N,))
    w = quantize(Tensor(normal(rng, (N, K)), backend=backend), "w8a8")
    got = linear(Tensor(x, backend=backend), w, Tensor(b, backend=backend))
    q, scale = (w.parts[name].numpy() for name in ("codes", "scales"))
    # integer sums are exact: what is left is the rounding of three float32 products and a sum
    assert_close(got.numpy(), oracles.linear_w8a8(x, q, scale, b), dtype="float32", reduce=1)


@pytest.mark.parametrize("scheme", packed.BLOCKS)
@pytest.mark.parametrize(
    "shape", [(1, 64, 8), large((2, 256, 5)), (7, 576, 33), large((0, 32, 4))], ids=str
)
def test_blocks(shape, scheme, backend, dtype, rng):
    T, K, N = shape[0], packed.fitted(scheme, shape[1]), shape[2]
    x, b = normal(rng, (T, K), dtype), normal(rng, (N,))
    w, truth = packed.draw(backend, rng, scheme, N, K)
    want = oracles.linear(x.astype(np.float64), truth, b)
    got = linear(Tensor(x, backend=backend), w, Tensor(b, backend=backend))
    precision = "float32" if dtype == "float64" else dtype
    c = packed.product_c(backend, SCHEMES[scheme], T) if dtype == "float32" else None
    assert_close(got.numpy(), want, dtype=precision, reduce=K, scale=rms(x) * rms(truth) + 1, c=c)


@pytest.mark.large
@pytest.mark.parametrize("scheme", ["int8", "q8_0", "q4_k", "nf4", "w8a8"])
def test_weights_that_may_be_rounded(scheme, plain_backend, rng):
    """Many rows of 16 bits by a weight under an adapter: each number of it loses a bfloat16's
    rounding at most."""
    T, K, N = 1100, packed.fitted(scheme, 256), 40
    x = normal(rng, (T, K), "bfloat16")
    w, truth = packed.draw(plain_backend, rng, scheme, N, K)
    got = linear(Tensor(x, backend=plain_backend), w, rounded=True)
    want = product(x, w, truth)
    assert_close(got.numpy(), want, dtype="bfloat16", reduce=K, scale=rms(x) * rms(truth) + 1)


@pytest.mark.parametrize("trained", ["up", "down", "neither"])
def test_an_adapter_on_the_tape_may_round_its_base(trained, rng, monkeypatch):
    """In training alone, whichever factor is trained; else where the caller says so."""
    module, asked = import_module("boostr.ops.linear"), []
    known = module._linear

    def noted(x, weight, *rest):
        asked.append((type(weight).__name__, rest[-1]))
        return known(x, weight, *rest)

    monkeypatch.setattr(module, "_linear", noted)
    x, w, down, up = tensors(
        "numpy", *(normal(rng, s) for s in ((3, 64), (8, 64), (2, 64), (8, 2)))
    )
    down.requires_grad, up.requires_grad = trained == "down", trained == "up"
    weight = LowRank(quantize(w, "int8"), down, up, 1.0)

    def base(**options):
        asked.clear()
        linear(x, weight, **options)
        return dict(asked)["QuantizedTensor"]

    assert base() is (trained != "neither") and base(rounded=True) is True
    with no_grad():
        assert base() is False


SLICED = (packed.FORMS, (1, 20))


@pytest.mark.parametrize(("scheme", "T"), every(in_turn(*SLICED), *SLICED))
def test_slices_of_a_packed_weight(scheme, T, backend, rng):
    """Some rows, and the columns from one cut on: parts that do not begin where memory does."""
    unit = SCHEMES[scheme].unit
    w, truth = packed.draw(backend, rng, scheme, 20, 2 * unit + 256)
    x = normal(rng, (T, unit + 256))
    if scheme == "w8a8":
        truth = oracles.dequantize_int8(*(w.parts[n].numpy() for n in ("codes", "scales")))
        x = oracles.dequantize_int8(*oracles.quantize_int8(x)).astype(np.float32)
    part, truth = w.rows(3, 18).columns(unit, 2 * unit + 256), truth[3:18, unit:]
    got, c = linear(Tensor(x, backend=backend), part), packed.product_c(backend, w.scheme, T)
    close(got, oracles.linear(x, truth), x, truth, "float32", c)


def test_gradient(backend64, rng):
    x, w, b, r = (normal(rng, s) for s in ((2, 2, 3), (4, 3), (4,), (2, 2, 4)))
    gradcheck(linear, leaves(backend64, x, w))
    gradcheck(linear, leaves(backend64, x, w, b))
    gradcheck(linear, leaves(backend64, x, w, b, r))
    gradcheck(lambda x, w, r: linear(x, w, None, r), leaves(backend64, x, w, r))


@pytest.mark.parametrize("scheme", GROUPED)
def test_gradient_through_a_packed_weight(scheme, backend64, rng):
    w = quantize(Tensor(normal(rng, (4, 40)), backend=backend64), scheme)
    gradcheck(lambda x: linear(x, w), leaves(backend64, normal(rng, (2, 40))))


def test_gradient_in_mixed_precision(backend, rng):
    """A bf16 weight gets a bf16 gradient, float32 inputs a float32 one."""
    x, w = tensors(backend, normal(rng, (3, 8)), normal(rng, (4, 8), "bfloat16"))
    x.requires_grad = w.requires_grad = True
    linear(x, w).sum().backward()
    assert x.grad.dtype == dtypes.float32 and w.grad.dtype == dtypes.bfloat16
    want = np.broadcast_to(w.numpy().astype(np.float64).sum(0), (3, 8))
    assert_close(x.grad.numpy(), want, dtype="float32", reduce=4)


GRADIENTS = [(5, 100, 7), (1, 64, 64), (33, 96, 40), (17, 576, 48), (0, 32, 8), (2, 1, 1)]


@pytest.mark.parametrize("shape", GRADIENTS, ids=str)
def test_gradients_of_every_width(shape, backend, dtype, rng):
    """dx and dweight against float64, in the dtypes of x and weight, summed in float32."""
    T, K, N = shape
    x, w, g = normal(rng, (T, K), dtype), normal(rng, (N, K), dtype), normal(rng, (T, N), dtype)
    tx, tw, tg = tensors(backend, x, w, g)
    tx.requires_grad = tw.requires_grad = True
    linear(tx, tw).backward(tg)
    x, w, g = (a.astype(np.float64) for a in (x, w, g))
    for got, want, reduce, scale in (
        (tx.grad, g @ w, N, rms(g) * rms(w)), (tw.grad, g.T @ x, T, rms(g) * rms(x)),
    ):  # fmt: skip
        assert got.dtype == dtypes.parse(dtype)
        assert_close(got.numpy(), want, dtype=dtype, reduce=max(reduce, 1), scale=scale)


@pytest.mark.parametrize("scheme", ["int8-g32", "int4-g32", "nf4"])
def test_gradients_of_packed_weights(scheme, backend, dtype, rng, monkeypatch):
    monkeypatch.setattr(import_module("boostr.ops.linear"), "_CHUNK", 64 * 5)  # several bands
    w = quantize(Tensor(normal(rng, (12, 64)), backend=backend), scheme)
    truth = dequantize(w).numpy().astype(np.float64)
    x, g = normal(rng, (2, 3, 64), dtype), normal(rng, (2, 3, 12), dtype)
    tx, tg = tensors(backend, x, g)
    tx.requires_grad = True
    linear(tx, w).backward(tg)
    precision = "float32" if dtype == "float64" else dtype
    g = g.astype(np.float64)
    assert tx.grad.dtype == dtypes.parse(dtype)
    # the decoded weight is rounded to x's dtype: as x is
    assert_close(tx.grad.numpy(), g @ truth, dtype=precision, reduce=12, scale=rms(g) * rms(truth))


def test_gradients_of_logits(backend, rng):
    """A float32 result of 16-bit operands: its gradient is float32, theirs are not."""
    x, w, g = (
        normal(rng, (9, 64), "bfloat16"),
        normal(rng, (33, 64), "bfloat16"),
        normal(rng, (9, 33)),
    )
    tx, tw, tg = tensors(backend, x, w, g)
    tx.requires_grad = tw.requires_grad = True
    linear(tx, tw, dtype="float32").backward(tg)
    x, w = x.astype(np.float64), w.astype(np.float64)
    close_to = {"dtype": "bfloat16", "scale": rms(g)}
    assert_close(tx.grad.numpy(), g @ w, reduce=33, **close_to)
    assert_close(tw.grad.numpy(), g.T @ x, reduce=9, **close_to)


def test_frozen_weights_keep_no_input(rng):
    x, w = leaves("numpy", normal(rng, (3, 8)), normal(rng, (4, 8)))
    w.requires_grad = False
    kept = linear(x, w).node.args
    assert not isinstance(kept[0], Tensor) and isinstance(kept[1], Tensor)
    x.requires_grad, w.requires_grad = False, True
    kept = linear(x, w).node.args
    assert isinstance(kept[0], Tensor) and not isinstance(kept[1], Tensor)


def test_refuses(rng):
    x, w, b = tensors("numpy", normal(rng, (2, 64)), normal(rng, (8, 64)), normal(rng, (8,)))
    with refused(DTypeError, "linear", "float", "int32"):
        linear(x.to("int32"), w)
    with refused(DTypeError, "linear", "[..., K]", "[]"):
        linear(x[0, 0], w)
    with refused(DTypeError, "linear", "weight", "int8"):
        linear(x, w.to("int8"))
    with refused(ShapeError, "linear", "K = 64", "[64, 8]"):
        linear(x, w.T)
    with refused(ShapeError, "linear", "K = 64", "[8, 32]"):
        linear(x, quantize(w[:, :32], "int8"))
    with refused(ShapeError, "linear", "[N] = [8]", "[7]"):
        linear(x, w, b[:7])
    with refused(ShapeError, "linear", "residual", "[2, 8]", "[8]"):
        linear(x, w, None, b)
