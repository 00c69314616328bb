"""Tensors larger than a binding, of which WGSL kernels see windows; and ids outside of a table."""

import numpy as np
import oracles
import oracles_rows
import pytest
from backends.products.test_gpu_quant import same
from backends.rows.test_gpu_loss import check_cross_entropy
from backends.rows.test_gpu_tables import FLOATS
from draws import normal, tensors
from packed import BLOCKS, draw, group_of
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close

from boostr import Tensor, dtypes, ops
from boostr.ops.embedding import _embedding_backward, embedding
from boostr.ops.quant import dequantize, quantize


def test_logits_beyond_a_binding(rng):
    with strict_wgpu(binding_bytes=16384) as backend:
        check_cross_entropy(backend, "bfloat16", (50, 500), "plain", rng)
        check_cross_entropy(backend, "float32", (50, 333), "unaligned", rng)


def test_rows_beyond_a_binding(rng):
    x, u, w = (normal(rng, s, "bfloat16") for s in ((300, 40), (300, 40), (40,)))
    with strict_wgpu(binding_bytes=8192) as backend:
        tx, tu, tw = tensors(backend, x, u, w)
        h, v = oracles.rms_norm(x, w, 1e-5, u)[::-1], ops.rms_norm(tx, tw, eps=1e-5, residual=tu)
        for got, want in zip(v[::-1], h, strict=True):
            assert_close(got.numpy(), want, dtype="bfloat16", reduce=1, scale=2, c=4)
        gated = oracles.swiglu(x.astype(np.float64), u)
        assert_close(ops.swiglu(tx, tu).numpy(), gated, dtype="bfloat16", reduce=1, scale=3)
        want = oracles.softmax(x.astype(np.float64), -1)
        assert_close(ops.softmax(tx).numpy(), want, dtype="bfloat16", reduce=1)


@pytest.mark.parametrize("E", (33, 40))
def test_tables_beyond_a_binding(E, rng):
    """Rows that lie in several windows of a buffer: every token finds its own."""
    w, ids = normal(rng, (500, E), "bfloat16"), rng.integers(0, 500, 70).astype(np.int32)
    ids[-1] = 499
    with strict_wgpu(binding_bytes=4096) as backend:
        got = embedding(*tensors(backend, ids, w)).numpy()
        np.testing.assert_array_equal(got, w[ids])
    with strict_wgpu(binding_bytes=16384) as backend:
        for scheme in ("int8-g32", *BLOCKS):
            table, want = draw(backend, rng, scheme, 200, 256)
            got = embedding(Tensor(ids // 3, backend=backend), table, "float32").numpy()
            assert_close(got, want[ids // 3], dtype="float32", reduce=1, scale=0.1)
    g = normal(rng, (70, E), "bfloat16")
    want = oracles_rows.embedding_backward(g, ids, 500)
    with strict_wgpu(binding_bytes=8192) as backend:
        got = _embedding_backward(*tensors(backend, g, ids), 500, dtypes.bfloat16).numpy()
        assert_close(got, want, dtype="bfloat16", reduce=1, scale=3)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("E", (1, 33, 36, 64))
def test_ids_outside_of_a_table(E, stored, rng):
    """As an index of WGSL: the nearest row."""
    w, ids = normal(rng, (97, E), stored), np.array([-5, 500], np.int32)
    with strict_wgpu() as backend:
        for dtype in FLOATS:
            got = embedding(*tensors(backend, ids, w), dtype=dtype).numpy()
            np.testing.assert_array_equal(got, w[[0, 96]].astype(dtypes.parse(dtype)))


@pytest.mark.parametrize("scheme", ["int8", "int8-g32"])
def test_quantized_beyond_a_binding(scheme, rng):
    with strict_wgpu(binding_bytes=1 << 12, **{k: v for k, v in BARE.items() if k != "f16"}) as gpu:
        w = normal(rng, (100, 36))
        got = quantize(Tensor(w, backend=gpu), scheme)
        same(got, w, scheme)
        q, scale = oracles.quantize_int8(w, group_of(scheme))
        want = oracles.dequantize_int8(q, scale, group_of(scheme))
        assert_close(dequantize(got).numpy(), want, dtype="float32", reduce=1, scale=0.0)
