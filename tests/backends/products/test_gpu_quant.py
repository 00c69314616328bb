"""Quantizing and reading back on a GPU: exact numbers, odd sizes, the ends of float32."""

import numpy as np
import oracles
import pytest
from draws import normal, view
from ops.linear_cases import close, product
from packed import BLOCKS, FORMS, HALVES, INT8, draw, draw_blocks, fitted, group_of, packed, stack
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize, quantize, quantize_rows
from boostr.quant.gguf import BLOCK_TYPES


def same(got, w, scheme):
    q, scale = oracles.quantize_int8(w, group_of(scheme))
    np.testing.assert_array_equal(got.parts["scales"].numpy(), scale)
    np.testing.assert_array_equal(got.parts["codes"].numpy(), q)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", INT8)
def test_quantize_is_exact(scheme, dtype, gpu, rng):
    """Sizes from tiny to large in one tensor, rows of nothing, and rows that share words."""
    for shape in (
        (65, 257),
        (3, 1000),
        (7, 3),
        (5, 1),
        (7, 100),
        (3, 4096),
        (300, 576),
        (2, 14336),
    ):
        w = normal(rng, shape, "float32")
        w *= np.exp2(rng.integers(-12, 12, (shape[0], 1))).astype(np.float32)
        w[0] = 0
        w = w.astype(dtypes.parse(dtype))
        same(quantize(Tensor(w, backend=gpu), scheme), w, scheme)
        if scheme == "int8":
            values, scales = quantize_rows(Tensor(w, backend=gpu))
            q, scale = oracles.quantize_int8(w)
            np.testing.assert_array_equal(values.numpy(), q)
            np.testing.assert_array_equal(scales.numpy(), scale)


@pytest.mark.parametrize("power", [-118, -80, 0, 120])
def test_the_ends_of_float32(power, gpu, rng):
    w = normal(rng, (9, 64)) * np.float32(2.0**power)
    same(quantize(Tensor(w, backend=gpu), "int8-g32"), w, "int8-g32")


def test_scales_below_the_normal_numbers(gpu, rng):
    """WGSL lets a GPU take these for 0; then all of the group is 0. Else they round twice."""
    w = normal(rng, (9, 64)) * np.float32(2.0**-121)
    got = quantize(Tensor(w, backend=gpu), "int8-g32")
    q, scale = oracles.quantize_int8(w, 32)
    scales, values = got.parts["scales"].numpy(), got.parts["codes"].numpy()
    flushed = (scales == 0) & (scale < np.finfo(np.float32).tiny)
    np.testing.assert_allclose(scales, np.where(flushed, 0, scale), rtol=0, atol=1.5e-45)
    off = values.astype(np.int32) - np.where(np.repeat(flushed, 32, 1), 0, q)
    assert np.abs(off).max() <= 1


def test_views(gpu, rng):
    x = normal(rng, (5, 33), "bfloat16")
    same(quantize(view(gpu, x, 3), "int8"), x, "int8")
    values, scales = quantize_rows(Tensor(x, backend=gpu)[1:])
    q, scale = oracles.quantize_int8(x[1:])
    np.testing.assert_array_equal(values.numpy(), q)
    np.testing.assert_array_equal(scales.numpy(), scale)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", BLOCKS)
def test_blocks(scheme, wanted, gpu, rng):
    w, truth = draw(gpu, rng, scheme, 7, fitted(scheme, 96))
    assert_close(dequantize(w, wanted).numpy(), truth, dtype=wanted, reduce=1)


# f16 numbers of every kind: normal, subnormal, the ends of both, zeros, either sign
EDGES = np.array(
    [1.5, -0.25, 2**-14, -(2**-14) * 1023 / 1024, 2**-24, -(2**-24), 3e-6, 0.0, -0.0, 65504.0],
    np.float16,
)


def of_halves(rng, scheme, halves, N, K):
    """(blocks with these f16 numbers in turn, what they mean)."""
    raw = draw_blocks(rng, scheme, N, K).reshape(-1, BLOCK_TYPES[scheme.upper()].nbytes)
    for at, _ in HALVES[scheme]:
        turned = np.resize(np.roll(halves, at), len(raw))
        raw[:, at : at + 2] = turned.astype(np.float16)[:, None].view(np.uint8)
    raw = raw.reshape(N, -1)
    return raw, BLOCKS[scheme](raw)


@pytest.mark.parametrize("scheme", BLOCKS)
def test_every_half_is_read_exactly(scheme, gpu, rng):
    """One block or superblock a row; a GPU that takes subnormal numbers for 0 loses whole rows."""
    raw, truth = of_halves(rng, scheme, EDGES, 2 * len(EDGES) + 1, fitted(scheme, 32))
    w = packed(gpu, scheme, raw, truth.shape[1])
    np.testing.assert_array_equal(dequantize(w).numpy(), truth.astype(np.float32))
    some = dequantize(w.rows(3, 8)).numpy()
    np.testing.assert_array_equal(some, truth[3:8].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", BLOCKS)
def test_products_with_subnormal_halves(scheme, dtype, gpu, rng):
    raw, truth = of_halves(rng, scheme, EDGES[3:7], 37, 256)
    w = packed(gpu, scheme, raw, 256)
    for M in (1, 9):
        x = normal(rng, (M, 256), dtype)
        close(linear(Tensor(x, backend=gpu), w), product(x, w, truth), x, truth, dtype)


@pytest.mark.parametrize("scheme", FORMS)
def test_stacks(scheme, gpu, rng):
    """[X, N, K], and a matrix of one that lies within it."""
    w, truth = stack(gpu, rng, scheme, 3, 5, fitted(scheme, 96))
    assert_close(dequantize(w).numpy(), truth, dtype="float32", reduce=1)
    one = w.expert(1)
    assert_close(dequantize(one).numpy(), truth[1], dtype="float32", reduce=1)
    x = normal(rng, (2, w.shape[2]))
    close(linear(Tensor(x, backend=gpu), one), product(x, one, truth[1]), x, truth[1], "float32")


@pytest.mark.parametrize("scheme", BLOCKS)
def test_columns(scheme, gpu, rng):
    w, truth = draw(gpu, rng, scheme, 13, 768)
    cut, x = w.columns(256, 768), normal(rng, (9, 512), "bfloat16")
    want = truth[:, 256:]
    assert_close(dequantize(cut).numpy(), want, dtype="float32", reduce=1)
    for M in (1, 9):
        got = linear(Tensor(x[:M], backend=gpu), cut)
        close(got, product(x[:M], cut, want), x[:M], want, "bfloat16")
