"""linear and matmul of many rows on a GPU against float64, strictly: forms, sizes, captures."""

import itertools

import numpy as np
import oracles
import pytest
from draws import every, in_turn, normal, tensors, view
from ops.linear_cases import FORMS, close, product, turned, weight
from packed import INT8, fitted
from tolerance import assert_close

from boostr import Tensor, capture
from boostr.ops.linear import linear

FLOATS = ("float32", "float16", "bfloat16")
# rows around the tiles of 16, 32, 64 and 128; columns off every tile
SHAPES = [(9, 65, 64), (33, 40, 288), (33, 200, 576), (64, 128, 128), (65, 129, 96),
          (130, 300, 1056)]  # fmt: skip
ODD = [(12, 33, 101), (30, 1, 7), (10, 6, 50), (70, 1, 7), (100, 45, 250)]


def check_linear(backend, rng, form, dtype, M, N, K):
    """The product alone, and with a bias and a residual."""
    K = fitted(form, K)
    x, b, r = normal(rng, (M, K), dtype), normal(rng, (N,), dtype), normal(rng, (M, N), dtype)
    w, truth = weight(backend, rng, form, N, K, dtype)
    want = product(x, w, truth)
    tx, tb, tr = tensors(backend, x, b, r)
    close(linear(tx, w), want, x, truth, dtype)
    want = want + r.astype(np.float64)
    close(linear(tx, w, None, tr), want, x, truth, dtype, r)
    close(linear(tx, w, tb, tr), want + b.astype(np.float64), x, truth, dtype, b, r)


@pytest.mark.parametrize(("form", "dtype", "shape"), every(
    in_turn(FORMS, FLOATS, SHAPES), FORMS, FLOATS, SHAPES
), ids=str)  # fmt: skip
def test_forms(gpu, rng, form, dtype, shape):
    check_linear(gpu, rng, form, dtype, *shape)


@pytest.mark.parametrize(("dtype", "form"), every(
    [("float32", "float"), ("float32", "int8-g32"), ("float32", "w8a8"), ("bfloat16", "float"),
     ("bfloat16", "int8"), ("bfloat16", "int8-g32"), ("bfloat16", "w8a8")],
    FLOATS, ("float", *INT8),
))  # fmt: skip
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_odd_sizes(gpu, rng, form, dtype, shape):
    """K off every alignment: kernels that read single elements, or cuBLASLt without alignment."""
    check_linear(gpu, rng, form, dtype, *shape)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [20, 150])
def test_two_float_types_and_wide_results(gpu, rng, stored, dtype, M):
    x, w = normal(rng, (M, 160), dtype), normal(rng, (72, 160), stored)
    b = normal(rng, (72,))
    tx, tw, tb = tensors(gpu, x, w, b)
    want = oracles.linear(x.astype(np.float64), w)
    close(linear(tx, tw), want, x, w, dtype)
    close(linear(tx, tw, tb), want + b, x, w, dtype, b)
    close(linear(tx, tw, tb, dtype="float32"), want + b, x, w, "float32", b)


@pytest.mark.parametrize("form", ("float", "int8", "w8a8"))
@pytest.mark.parametrize(("M", "N", "K"), [(12, 24, 64), (40, 72, 320)])
def test_views_of_x(gpu, rng, form, M, N, K):
    """Rows that lie apart, and rows that do not begin at a vector."""
    wide = normal(rng, (M, K + 12), "bfloat16")
    w, truth = weight(gpu, rng, form, N, K, "bfloat16")
    on_device = Tensor(wide, backend=gpu)
    for start in (0, 1, 8):
        x = wide[:, start : start + K]
        got = linear(on_device[:, start : start + K], w)
        close(got, product(x, w, truth), x, truth, "bfloat16")
    x = normal(rng, (2, M // 2, K), "bfloat16")
    want = x.astype(np.float64) @ truth.T
    if form != "w8a8":
        close(linear(view(gpu, x), w), want, x, truth, "bfloat16")


@pytest.mark.parametrize("form", ("float", "int8", "w8a8", "q8_0"))
@pytest.mark.parametrize(("M", "N", "K"), [(30, 36, 128), (30, 304, 1024), (90, 304, 1024)])
def test_captured(gpu, rng, form, M, N, K):
    w, _ = weight(gpu, rng, form, N, K, "bfloat16")
    x = Tensor(normal(rng, (M, K), "bfloat16"), backend=gpu)
    program = capture(lambda: linear(x, w), gpu)
    want = linear(x, w).numpy()
    for _ in range(3):
        program.run()
    assert np.array_equal(program.outputs.numpy(), want)


def test_shared_sums_are_the_same_every_time(gpu, rng):
    """Where several blocks add up the terms of one result."""
    x, w = tensors(gpu, normal(rng, (16, 4096), "bfloat16"), normal(rng, (512, 4096), "bfloat16"))
    first = linear(x, w, dtype="float32").numpy()
    for _ in range(10):
        assert np.array_equal(linear(x, w, dtype="float32").numpy(), first)


PAIRS = [
    ((3, 5), (5, 7)), ((1, 64), (64, 1)), ((2, 3, 9, 16), (2, 3, 16, 8)), ((4, 9, 16), (16, 8)),
    ((9, 16), (4, 16, 8)), ((2, 1, 5, 8), (1, 3, 8, 4)), ((2, 3, 5, 8), (2, 1, 8, 4)),
    ((3, 0), (0, 2)), ((0, 4), (4, 2)), ((3, 33, 20), (3, 20, 35)),
]  # fmt: skip


def check_matmul(backend, rng, a, b, dtype):
    """Each operand in either order of its last axes."""
    x, y = normal(rng, a, dtype), normal(rng, b, dtype)
    want = x.astype(np.float64) @ y.astype(np.float64)
    for turn_x, turn_y in itertools.product((False, True), repeat=2):
        tx = turned(backend, x) if turn_x else Tensor(x, backend=backend)
        ty = turned(backend, y) if turn_y else Tensor(y, backend=backend)
        assert_close((tx @ ty).numpy(), want, dtype=dtype, reduce=max(a[-1], 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)
def test_matmul(gpu, rng, a, b, dtype):
    check_matmul(gpu, rng, a, b, dtype)


def test_matmul_captured(gpu, rng):
    x, y = tensors(gpu, normal(rng, (3, 40, 16)), normal(rng, (16, 9)))
    program = capture(lambda: x @ y, gpu)
    program.run()
    want = x.numpy().astype(np.float64) @ y.numpy()
    assert_close(program.outputs.numpy(), want, dtype="float32", reduce=16)
