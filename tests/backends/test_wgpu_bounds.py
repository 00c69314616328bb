"""Tensors larger than a binding, of which a WGSL kernel sees windows, by the checks of each op."""

import numpy as np
import oracles
from backends.test_gpu_loss import check_cross_entropy
from draws import normal, tensors
from strict_wgpu import strict_wgpu
from tolerance import assert_close

from boostr import ops


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
