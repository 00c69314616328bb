"""Quantizing to int8 and reading int8 and GGUF blocks back, against the oracle."""

import numpy as np
import oracles
import packed
import pytest
from draws import normal, refused, strided
from packed import BLOCKS, INT8, draw, fitted, group_of, stack
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.errors import DTypeError, NumericsError, OptionError, ShapeError
from boostr.ops.quant import dequantize, quantize, quantize_rows
from boostr.quant.scheme import NF4, SCHEMES, QuantizedTensor, affine_scheme, parse_scheme

SHAPES = [(3, 128), (2, 100), (1, 7), (4, 65), (0, 32), (2, 0)]


@pytest.mark.parametrize("scheme", INT8)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantize(shape, scheme, backend, dtype, rng):
    w = normal(rng, shape, dtype)
    got = quantize(Tensor(strided(w) if w.size else w, backend=backend), scheme)
    if shape[1] == 0:
        assert got.parts["codes"].shape == shape
        return
    q, scale = oracles.quantize_int8(w, group_of(scheme))
    assert got.shape == shape and got.scheme.name == scheme
    np.testing.assert_array_equal(got.parts["codes"].numpy(), q)
    np.testing.assert_array_equal(got.parts["scales"].numpy(), scale)


@pytest.mark.parametrize("scheme", INT8)
def test_dequantize(scheme, backend, rng):
    w = normal(rng, (3, 100))
    got = dequantize(quantize(Tensor(w, backend=backend), scheme))
    q, scale = oracles.quantize_int8(w, group_of(scheme))
    want = oracles.dequantize_int8(q, scale, group_of(scheme))
    assert_close(got.numpy(), want, dtype="float32", reduce=1, scale=0.0)
    assert np.all(
        np.abs(want - w) <= np.repeat(scale, group_of(scheme) or 100, 1)[:, :100] * 0.5001
    )


NARROW = ("int4-g32", "int4-g64", "int4-g128", "nf4", "fp8")


def steps(scheme, w, scales):
    """Half of the distance between two numbers of a scheme around each w, float64."""
    group = group_of(scheme) or w.shape[1]
    s = np.repeat(scales.astype(np.float64), group, 1)[:, : w.shape[1]]
    if scheme.startswith("int4"):
        return s / 2
    x = w / np.where(s > 0, s, 1)
    if scheme == "fp8":  # 3 bits of fraction, 2^-6 the smallest normal number
        return s * np.ldexp(0.5, np.frexp(np.maximum(np.abs(x), 2.0**-6))[1] - 4)
    gaps = np.diff(NF4)
    return s * gaps[np.clip(np.searchsorted(NF4, x, "right") - 1, 0, 14)] / 2


@pytest.mark.parametrize("scheme", NARROW)
@pytest.mark.parametrize("shape", [(3, 128), (2, 192), (5, 576), (0, 64)], ids=str)
def test_no_number_is_nearer(scheme, shape, backend, dtype, rng):
    """|w - q(w)| is at most half of a step; zeros stay zeros."""
    w = normal(rng, shape, dtype, 0.05)
    if len(w):
        w[0, :64], w[1] = 0, w[1] * w.dtype.type(2**-9)
    got = quantize(Tensor(w, backend=backend), scheme)
    w = w.astype(np.float64)
    error = np.abs(dequantize(got).numpy().astype(np.float64) - w)
    scales = got.parts["scales"].numpy()
    assert np.all(error <= steps(scheme, w, scales) * 1.00001 + 1e-12)
    if len(w):
        assert np.all(error[0, :64] == 0)
        peak = {"nf4": 1, "fp8": 448}.get(scheme, 7.5)
        top = np.abs(w).max(1) if scheme == "fp8" else np.abs(w[:, :32]).max(1)
        assert np.all(scales[:, 0] * np.float64(peak) >= top * 0.999999)


def test_fp8_is_the_cast_to_it(backend, rng):
    """Codes are those of a correctly rounded cast, ties to even and subnormals among them."""
    x = np.concatenate([np.arange(1, 449) / 512, np.arange(1, 449) / 16, [448, -448, -0.01]])
    w = np.stack([x, -x]).astype(np.float32)
    codes = quantize(Tensor(w, backend=backend), "fp8").parts["codes"].numpy()
    np.testing.assert_array_equal(codes, w.astype(dtypes.float8_e4m3).view(np.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("floats", ["f32", "f16", "bf16"])
def test_affine(bits, floats, backend, rng):
    """Steps from the least number to the greatest: groups of one number are exact in float32."""
    w = normal(rng, (4, 192), "float32", 0.05) + np.float32(0.02)
    w[1], w[2, :64], w[3] = 0.3, 0, -np.abs(w[3])
    got = quantize(Tensor(w, backend=backend), affine_scheme(bits, 64, floats))
    error = np.abs(dequantize(got).numpy().astype(np.float64) - w)
    eps = dtypes.eps(got.parts["scales"].dtype)
    scales = got.parts["scales"].to("float32").numpy()
    spread = np.abs(w).reshape(4, 3, 64).max(2)
    assert np.all(error <= np.repeat(scales / 2 * 1.0001 + spread * eps, 64, 1))
    assert np.all(error[2, :64] == 0)
    if floats == "f32":
        assert np.all(error[1] == 0)


def test_int4_ends(backend):
    """Both ends are half a step away: -8 has a code of its own, +8 has not."""
    w = np.zeros((1, 32), np.float32)
    w[0, :4] = [7.5, -7.5, 0.5, 1.5]
    got = quantize(Tensor(w, backend=backend), "int4-g32")
    assert got.parts["scales"].to("float32").tolist() == [[1.0]]
    assert dequantize(got).numpy()[0, :5].tolist() == [7.0, -8.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "nf4", "fp8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(scheme, bad, backend, rng):
    w = normal(rng, (3, 64))
    w[1, 17] = bad
    with refused(NumericsError, "quantize", "nan or infinite"):
        quantize(Tensor(w, backend=backend), scheme)


def test_zero_and_extreme_rows(backend):
    w = np.zeros((3, 64), np.float32)
    w[1, 5], w[2] = -3e38, np.linspace(-1e-35, 1e-35, 64)  # its scale is above the denormals
    got = quantize(Tensor(w, backend=backend), "int8-g32")
    q, scale = oracles.quantize_int8(w, 32)
    np.testing.assert_array_equal(got.parts["codes"].numpy(), q)
    np.testing.assert_array_equal(got.parts["scales"].numpy(), scale)
    assert got.parts["codes"].numpy()[0].max() == 0


def test_halves_round_to_even(backend):
    w = np.array([[127, 0.5, 1.5, -0.5, -2.5]], np.float32)
    got = quantize(Tensor(w, backend=backend), "int8").parts["codes"]
    assert got.tolist() == [[127, 0, 2, 0, -2]]


def test_quantize_rows(backend, rng):
    x = normal(rng, (2, 3, 50))
    values, scales = quantize_rows(Tensor(x, backend=backend))
    q, scale = oracles.quantize_int8(x.reshape(6, 50))
    np.testing.assert_array_equal(values.numpy(), q.reshape(x.shape))
    np.testing.assert_array_equal(scales.numpy(), scale.reshape(2, 3, 1))


@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scheme", BLOCKS)
def test_blocks(scheme, wanted, backend, rng):
    for K in {fitted(scheme, 32), fitted(scheme, 96), 512}:
        w, truth = draw(backend, rng, scheme, 5, K)
        got = dequantize(w, wanted)
        assert got.dtype == dtypes.parse(wanted)
        assert_close(got.numpy(), truth, dtype=wanted, reduce=1)


@pytest.mark.parametrize("scheme", packed.FORMS)
def test_stacks_and_slices(scheme, backend, rng):
    unit = SCHEMES[scheme].unit
    w, truth = stack(backend, rng, scheme, 3, 7, 3 * unit)
    assert_close(dequantize(w).numpy(), truth, dtype="float32", reduce=1)
    cases = [(w.expert(1), truth[1]), (w.expert(2).rows(2, 6), truth[2, 2:6])]
    cases += [(w.expert(0).columns(unit, 3 * unit), truth[0, :, unit:])]
    for part, want in cases:
        assert part.shape == want.shape
        assert_close(dequantize(part).numpy(), want, dtype="float32", reduce=1)


def test_described(backend, rng):
    w = quantize(Tensor(normal(rng, (4, 64)), backend=backend), "int8-g32")
    assert w.nbytes == 4 * 64 + 4 * 2 * 4 and w.backend is backend
    assert repr(w) == "QuantizedTensor(int8-g32, shape=[4, 64])"
    assert w.to(backend).parts["codes"] is w.parts["codes"]


def test_refuses(rng):
    w = Tensor(normal(rng, (2, 64)), backend="numpy")
    with refused(OptionError, "quantize", "'int8-g33'", "did you mean 'int8-g32'"):
        parse_scheme("int8-g33")
    with refused(OptionError, "quantize", "'q8_0'", "known: int8"):
        quantize(w, "q8_0")
    with refused(ShapeError, "quantize", "[N, K]", "[64]"):
        quantize(w[0], "int8")
    with refused(ShapeError, "quantize", "float", "int32"):
        quantize(w.to("int32"), "int8")
    with refused(
        ShapeError, "quantize", "int4-g128", "multiple of 32", "got 33", "int8-g32 take any"
    ):
        quantize(Tensor(normal(rng, (2, 33)), backend="numpy"), "int4-g128")
    with refused(DTypeError, "dequantize", "float", "int8"):
        dequantize(quantize(w, "int8"), "int8")
    q = quantize(w, "int8").parts
    with refused(ShapeError, "int8-g32", "float32[2, 2]", "float32[2, 1]"):
        QuantizedTensor(SCHEMES["int8-g32"], (2, 64), q)
    with refused(ShapeError, "q8_0", "multiple of 32", "33"):
        QuantizedTensor(SCHEMES["q8_0"], (2, 33), q)
    with refused(ShapeError, "quantize_rows", "[..., K]", "[]"):
        quantize_rows(w[0, 0])
