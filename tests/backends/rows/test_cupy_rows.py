"""CUDA kernels over rows that no other backend has, against the float64 oracle, strictly."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
from backends.rows.test_gpu_rows import FLOATS, SIZES, rope_case
from draws import normal, tensors, view
from strict_cupy import strict_cupy
from tolerance import assert_close, rms

from boostr import Tensor, ops, zeros
from boostr.backends.cupy.rows import rope
from boostr.backends.cupy.rows.activation import gated
from boostr.backends.cupy.rows.rope import Norms, Tables, rope_write
from boostr.ops import norm as norm_ops


@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), SIZES[::2])
@pytest.mark.parametrize(("dtype", "stored"), (("bfloat16", "bfloat16"), ("float32", "float16"),
                                               ("float16", "float32")))  # fmt: skip
@pytest.mark.parametrize(("T", "normed", "cached"), ((1, 1, 1), (5, 0, 1), (600, 1, 1), (7, 1, 0)))
def test_rope_write(T, normed, cached, dtype, stored, D, half, layout, cupy_backend, rng):
    H, K, bs = 6, 2, 16
    x = normal(rng, (T, (H + 2 * K) * D), dtype)
    cos, sin, rows = rope_case(rng, D, half, T)
    gains = [normal(rng, (D,)) if normed else None for _ in range(2)]
    slots = rng.permutation(50 * bs)[:T].astype(np.int32)
    slots[T // 2 : T // 2 + (T > 1)] = -1
    caches = [normal(rng, (50, bs, K, D), stored) for _ in range(2)] if cached else [None] * 2
    ts = tensors(cupy_backend, *gains, cos, sin, rows, *caches, slots)
    data = [None if t is None else t.data for t in ts]
    tables = Tables(*data[2:5], None, layout == "interleaved")
    q, k, v = rope_write(
        cupy_backend, view(cupy_backend, x, 16).data, H, K, D, Norms(*data[:2], 1e-5), tables,
        data[5], data[6], data[7] if cached else None,
    )  # fmt: skip
    heads = x.astype(np.float64).reshape(T, H + 2 * K, D)
    want_q, want_k, want_v = heads[:, :H], heads[:, H : H + K], heads[:, H + K :]
    if normed:
        want_q = oracles.rms_norm(want_q, gains[0], 1e-5)[0]
        want_k = oracles.rms_norm(want_k, gains[1], 1e-5)[0]
    turn = layout == "interleaved"
    want_q, want_k = (oracles.rope(z, cos, sin, rows, turn) for z in (want_q, want_k))
    scale = 3 * rms(want_q)
    assert_close(Tensor.wrap(q, cupy_backend).numpy(), want_q, dtype=dtype, reduce=2, scale=scale)
    if not cached:
        for got, want in ((k, want_k), (v, want_v)):
            found = Tensor.wrap(got, cupy_backend).numpy()
            assert_close(found, want, dtype=dtype, reduce=2, scale=scale)
        return
    assert k is None and v is None
    for held, before, want in zip(ts[5:7], caches, (want_k, want_v), strict=True):
        truth = oracles.kv_write(before.astype(np.float64), want, slots)
        assert_close(held.numpy(), truth, dtype=stored, reduce=2, scale=scale)


@pytest.mark.parametrize("sms", (1, 5))
@pytest.mark.parametrize(("D", "half"), SIZES[::3])
@pytest.mark.parametrize(("T", "H", "K"), ((65, 9, 3), (701, 3, 1), (334, 40, 8)))
@pytest.mark.parametrize("over", (None, "head", "all"))
def test_tokens_that_share_a_block(over, T, H, K, D, half, sms, cupy_backend, rng, monkeypatch):
    """As on a GPU that so many tokens fill: bit for bit what comes of a block for each token."""
    cos, sin, rows = rope_case(rng, D, half, T)
    wide = (H * D, K * D) if over == "all" else (D, D)
    gains = [normal(rng, (n,)) if over else None for n in wide]
    x, *made = tensors(
        cupy_backend, normal(rng, (T, (H + 2 * K) * D), "bfloat16"), *gains, cos, sin, rows
    )
    data = [None if t is None else t.data for t in made]
    norms, tables = Norms(*data[:2], 1e-5, over=over or "head"), Tables(*data[2:])

    def run(sms):
        monkeypatch.setattr(cupy_backend, "caps", replace(cupy_backend.caps, sms=sms))
        out = rope_write(cupy_backend, x.data, H, K, D, norms, tables)
        one = ops.rope(x.reshape(T, H + 2 * K, D), *made[2:])
        return [Tensor.wrap(y, cupy_backend).numpy() for y in out] + [one.numpy()]

    assert rope._spread(T, H + 2 * K, 4, 1000)[0][0] == T > rope._spread(T, H + 2 * K, 4, sms)[0][0]
    for got, want in zip(run(sms), run(1000), strict=True):
        np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("T", "F"), ((1, 5), (3, 512), (257, 1000)))
def test_gated_matrix(T, F, dtype, cupy_backend, rng):
    x = normal(rng, (T, 2 * F), dtype)
    wide = x.astype(np.float64)
    got = gated(cupy_backend, view(cupy_backend, x, 16).data, "silu")
    want = oracles.silu(wide[:, :F]) * wide[:, F:]
    assert_close(Tensor.wrap(got, cupy_backend).numpy(), want, dtype=dtype, reduce=1, scale=3)


@pytest.fixture
def clean():
    """Without poison, which takes long for so much memory."""
    with strict_cupy(poison=False) as backend:
        yield backend


def test_past_two_to_the_31_elements(clean, rng):
    """Offsets are of 64 bits: the last row of a matrix of 4.3 GB."""
    rows, E = 2**20 + 3, 2048
    last, w = (normal(rng, (1, E), "bfloat16") for _ in range(2))
    x = zeros((rows, E), "bfloat16", clean)
    one, gain = tensors(clean, last, w[0])
    x[-1:].assign(one)
    np.testing.assert_array_equal(*(ops.rms_norm(t, gain)[-1].numpy() for t in (x, one)))
    np.testing.assert_array_equal(*(ops.swiglu(t, t)[-1].numpy() for t in (x, one)))
    backward = norm_ops._rms_norm_backward
    got, want = (backward(t, None, t, gain, 1e-6, 0.0, True) for t in (x, one))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.numpy()[-1:], b.numpy()[-1:])
