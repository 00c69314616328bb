"""Rows that the table of schemes might have: whatever a backend's kernels do not know, its
composites do, and both mean the same sum."""

import numpy as np
import oracles
import pytest
from draws import large, normal
from packed import product_c, tensor_of
from tolerance import assert_close, rms
from toys import TOYS, drawn, meaning

from boostr import Tensor
from boostr.ops.embedding import embedding
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize
from boostr.quant.scheme import Scheme

ROUNDED = (
    Scheme("w8a8-g32", 32, activations_int8=True),
    Scheme("w4a8", 0, bits=4, zero=8, multiple=32, activations_int8=True),
    Scheme("w4a8-g64", 64, bits=4, zero=8, scale="f16", multiple=64, activations_int8=True),
)
# whole steps of all kernels; and a last one that ends within a step, at the end of a group of 64
CASES = [(scheme, 832 if 832 % scheme.multiple == 0 else 768) for scheme in TOYS]
CASES += [large(scheme, 768) for scheme in TOYS if 832 % scheme.multiple == 0]


@pytest.mark.parametrize(("scheme", "K"), CASES, ids=lambda case: getattr(case, "name", case))
def test_a_row_of_the_table(scheme, K, backend, rng):
    parts = drawn(rng, scheme, 21, K)
    w, truth = tensor_of(backend, scheme, (21, K), parts), meaning(scheme, parts, K)
    assert_close(dequantize(w).numpy(), truth, dtype="float32", reduce=2, scale=rms(truth))
    ids = np.array([20, 0, 7], np.int32)
    got = embedding(Tensor(ids, backend=backend), w, "float32").numpy()
    assert_close(got, truth[ids], dtype="float32", reduce=2, scale=rms(truth))
    for T in (1, 3, 20):
        x = normal(rng, (T, K))
        got = linear(Tensor(x, backend=backend), w).numpy()
        c, scale = product_c(backend, scheme, T), rms(x) * rms(truth)
        assert_close(got, x @ truth.T, dtype="float32", reduce=K, scale=scale, c=c)


@pytest.mark.parametrize("scheme", ROUNDED, ids=lambda scheme: scheme.name)
def test_a_row_that_rounds_inputs(scheme, backend, rng):
    """Kernels know it under one scale a row; under others they must not pass for knowing it."""
    parts = drawn(rng, scheme, 21, 768)
    w, truth = tensor_of(backend, scheme, (21, 768), parts), meaning(scheme, parts, 768)
    for T in (1, 3, 20):
        x = normal(rng, (T, 768))
        q, scale = oracles.quantize_int8(x)
        got = linear(Tensor(x, backend=backend), w).numpy()
        want = (q * scale.astype(np.float64)) @ truth.T
        assert_close(got, want, dtype="float32", reduce=768, scale=rms(x) * rms(truth))
