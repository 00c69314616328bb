"""Rows that the table of schemes might have: whatever a backend's kernels do not know, its
composites do, and both mean the same sum."""

import numpy as np
import oracles
import pytest
from draws import normal
from packed import tensor_of
from tolerance import assert_close, rms

from boostr import Tensor, dtypes
from boostr.ops.embedding import embedding
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize
from boostr.quant.scheme import Scheme

F16, BF16, I8 = dtypes.float16, dtypes.bfloat16, dtypes.int8
TOYS = (
    Scheme("int8-g8", 8),
    Scheme("int8-bf16", 32, scale=BF16),
    Scheme("int8-offsets", 64, has_offsets=True),
    Scheme("int8-f16-row", 0, scale=F16),
    Scheme("int4-row", 0, bits=4, zero=8, multiple=32),
    Scheme("int4-g64", 64, bits=4, zero=8, scale=F16, multiple=64),
    Scheme("int4-g128-offsets", 128, bits=4, scale=F16, has_offsets=True, multiple=128),
    Scheme("int4-zero-3-offsets", 32, bits=4, zero=3, has_offsets=True, multiple=32),
    Scheme("int4-supers", 32, bits=4, zero=8, scale=I8, super_size=256, multiple=256),
    Scheme("int6-g32", 32, bits=6, zero=32, scale=F16, multiple=32),
    Scheme("int6-g16-offsets", 16, bits=6, has_offsets=True, multiple=32),
    Scheme("int6-row", 0, bits=6, zero=32, multiple=32),
)
ROUNDED = (
    Scheme("w8a8-g32", 32, activations_int8=True),
    Scheme("w4a8", 0, bits=4, zero=8, multiple=32, activations_int8=True),
    Scheme("w4a8-g64", 64, bits=4, zero=8, scale=F16, multiple=64, activations_int8=True),
)
# whole steps of all kernels; and a last one that ends within a step, at the end of a group of 64
CASES = [(scheme, K) for K in (768, 832) for scheme in TOYS if K % scheme.multiple == 0]


def drawn(rng, scheme, N, K):
    """Random planes."""
    parts = {}
    for name, part in scheme.parts.items():
        shape = (N, part.columns(K))
        if part.dtype.kind in "iu":
            parts[name] = rng.integers(0, 256, shape).astype(np.uint8).view(part.dtype)
        else:
            parts[name] = normal(rng, shape, part.dtype, 0.05)
    return parts


def meaning(scheme, parts, K):
    """scale (code - zero) + offset in float64, one column at a time."""
    out = []
    for k in range(K):
        group, i = divmod(k, 32)
        if scheme.bits == 8:
            code = parts["codes"][:, k].astype(np.int64)
        else:
            code = parts["codes"][:, 16 * group + i % 16] >> 4 * (i // 16) & 15
            if scheme.bits == 6:
                code = code | (parts["high"][:, 8 * group + i % 8] >> 2 * (i // 8) & 3) << 4
        g = k // scheme.group_size if scheme.group_size else 0
        scale = parts["scales"][:, g].astype(np.float64)
        if scheme.super_size:
            scale = scale * parts["supers"][:, k // scheme.super_size]
        offset = parts["offsets"][:, g].astype(np.float64) if scheme.has_offsets else 0
        out.append(scale * (code.astype(np.float64) - scheme.zero) + offset)
    return np.stack(out, 1)


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
        assert_close(got, x @ truth.T, dtype="float32", reduce=K, scale=rms(x) * rms(truth))


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
