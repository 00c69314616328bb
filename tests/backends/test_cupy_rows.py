"""The bandwidth-bound CUDA kernels against the float64 oracle, strictly (no composite steps in)."""

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import normal, tensors, view
from tolerance import assert_close, rms

from boostr import Tensor, dispatch, dtypes, ops, zeros
from boostr.ops import norm as norm_ops
from boostr.ops.activation import _geglu_backward, _gelu_backward, _silu_backward, _swiglu_backward
from boostr.ops.rope import _rope_backward

FLOATS = ("float32", "float16", "bfloat16")
floats = pytest.mark.parametrize("dtype", FLOATS)
# One element, off the runs of 16 bytes, part of a warp, models' widths, past what registers hold.
WIDTHS = (1, 7, 33, 64, 100, 576, 1000, 2048, 4096, 8192, 12344, 40000)
widths = pytest.mark.parametrize("E", WIDTHS)


# -- norm ----------------------------------------------------------------------------------------
@widths
@floats
@pytest.mark.parametrize("rows", (3, 1100))
def test_rms_norm(rows, dtype, E, cupy_backend, rng):
    rows = min(rows, max(3, 2_000_000 // E))
    x, r, w = normal(rng, (rows, E), dtype), normal(rng, (rows, E), dtype), normal(rng, (E,), dtype)
    a, b, c = tensors(cupy_backend, x, r, w)
    got = ops.rms_norm(view(cupy_backend, x), c, eps=1e-5, weight_offset=1.0)
    want, _ = oracles.rms_norm(x, w, 1e-5, None, 1.0)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2)
    got, sums = ops.rms_norm(a, c, eps=1e-5, residual=b)
    want, h = oracles.rms_norm(x, w, 1e-5, r)
    assert_close(sums.numpy(), h, dtype=dtype, reduce=1)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2, c=4)


@widths
@floats
def test_layer_norm(dtype, E, cupy_backend, rng):
    rows = 5 if E > 5000 else 700
    x, r = normal(rng, (rows, E), dtype), normal(rng, (rows, E), dtype)
    w, bias = normal(rng, (E,), dtype), normal(rng, (E,), dtype)
    a, b, c, d = tensors(cupy_backend, x, r, w, bias)
    want, _ = oracles.layer_norm(x, w, bias, 1e-2)
    got = ops.layer_norm(view(cupy_backend, x), c, d, eps=1e-2)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=4)
    want, h = oracles.layer_norm(x, w, None, 1e-2, r)
    got, sums = ops.layer_norm(a, c, eps=1e-2, residual=b)
    assert_close(sums.numpy(), h, dtype=dtype, reduce=1)
    # the rounding of h counts 1/sqrt(eps) times where h has no variance
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=4 if E > 1 else 40, c=4)


@floats
def test_norm_of_heads_in_a_fused_product(dtype, cupy_backend, rng):
    x, w = normal(rng, (50, 3 * 64), dtype), normal(rng, (64,), "float32")
    heads = view(cupy_backend, x, 128).reshape(50, 3, 64)
    got = ops.rms_norm(heads, Tensor(w, backend=cupy_backend))
    want, _ = oracles.rms_norm(x.reshape(50, 3, 64), w)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2)


@widths
@floats
@pytest.mark.parametrize("rows", (1, 3, 1501))
@pytest.mark.parametrize("kind", ("rms", "layer"))
def test_norm_gradient(kind, rows, dtype, E, cupy_backend, rng):
    rows = min(rows, max(3, 2_500_000 // E))
    g, p, h = (normal(rng, (rows, E), dtype) for _ in range(3))
    w = normal(rng, (E,), "float32" if E == 576 else dtype)
    for passed in (None, p) if rows == 3 else (p,) if dtype == "bfloat16" else (None,):
        tg, tp, th, tw = tensors(cupy_backend, g, passed, h, w)
        more = 0.0 if passed is None else passed
        if kind == "rms":
            got = (*norm_ops._rms_norm_backward(tg, tp, th, tw, 1e-2, 1.0, True), None)
            want = (*oracles_rows.rms_norm_backward(g, h, w, 1e-2, 1.0, more), None)
        else:
            got = norm_ops._layer_norm_backward(tg, tp, th, tw, 1e-2, True)
            want = oracles_rows.layer_norm_backward(g, h, w, 1e-2, more)
        steep = 10 if E == 1 else 1  # 1 / sqrt(eps) where a row has no variance
        assert_close(got[0].numpy(), want[0], dtype=dtype, reduce=1, scale=4 * steep)
        for mine, truth in zip(got[1:], want[1:], strict=True):
            if truth is not None:
                assert_close(mine.numpy(), truth, dtype=w.dtype, reduce=rows, scale=2)
    if rows == 1:
        return
    again = norm_ops._rms_norm_backward(tg, tp, th, tw, 1e-2, 1.0, True)
    same = norm_ops._rms_norm_backward(tg, tp, th, tw, 1e-2, 1.0, True)
    for one, two in zip(again, same, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert norm_ops._rms_norm_backward(tg, tp, th, tw, 1e-2, 0.0, False)[1] is None


# -- rope ----------------------------------------------------------------------------------------
SIZES = ((64, 32), (80, 40), (80, 16), (96, 48), (128, 64), (256, 128), (6, 3), (5, 2), (512, 256))


def rope_case(rng, D, half, T, S=5000):
    cos, sin = normal(rng, (S, half)), normal(rng, (S, half))
    rows = rng.integers(0, S, T).astype(np.int32)
    rows[0] = S - 1
    return cos, sin, rows


@floats
@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), SIZES)
@pytest.mark.parametrize(("T", "H"), ((1, 9), (9, 3), (700, 5)))
def test_rope(T, H, D, half, layout, dtype, cupy_backend, rng):
    x = normal(rng, (T, H * D), dtype)
    cos, sin, rows = rope_case(rng, D, half, T)
    c, s, p = tensors(cupy_backend, cos, sin, rows)
    want = oracles.rope(x.reshape(T, H, D), cos, sin, rows, layout == "interleaved")
    for rest in (0, 2 * D, 3):
        a = view(cupy_backend, x, rest).reshape(T, H, D)
        assert_close(ops.rope(a, c, s, p, layout=layout).numpy(), want, dtype=dtype, reduce=2)
    back = oracles.rope(x.reshape(T, H, D), cos, sin, rows, layout == "interleaved", inverse=True)
    got = _rope_backward(a, c, s, p, layout).numpy()
    assert_close(got, back, dtype=dtype, reduce=2)


@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), SIZES[::2])
@pytest.mark.parametrize(("dtype", "stored"), (("bfloat16", "bfloat16"), ("float32", "float16"),
                                               ("float16", "float32")))  # fmt: skip
@pytest.mark.parametrize(("T", "normed", "cached"), ((1, 1, 1), (5, 0, 1), (600, 1, 1), (7, 1, 0)))
def test_rope_write(T, normed, cached, dtype, stored, D, half, layout, cupy_backend, rng):
    from boostr.backends.cupy.rope import rope_write

    H, K, bs = 6, 2, 16
    x = normal(rng, (T, (H + 2 * K) * D), dtype)
    cos, sin, rows = rope_case(rng, D, half, T)
    gains = [normal(rng, (D,)) if normed else None for _ in range(2)]
    slots = rng.permutation(50 * bs)[:T].astype(np.int32)
    slots[T // 2 : T // 2 + (T > 1)] = -1
    caches = [normal(rng, (50, bs, K, D), stored) for _ in range(2)] if cached else [None] * 2
    ts = tensors(cupy_backend, *gains, cos, sin, rows, *caches, slots)
    data = [None if t is None else t.data for t in ts]
    q, k, v = rope_write(
        cupy_backend, view(cupy_backend, x, 16).data, H, K, D, data[0], data[1], 1e-5, data[2],
        data[3], data[4], layout, data[5], data[6], data[7] if cached else None,
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


# -- activations and softmax ---------------------------------------------------------------------
def slopes(name, x):
    """(f, f') in float64."""
    if name == "silu":
        return oracles.silu(x), oracles_rows.silu_slope(x)
    form = "none" if name == "gelu" else "tanh"
    return oracles.gelu(x, form), oracles_rows.gelu_slope(x, form)


def activation_ops(name):
    """(f, gated f, their gradients) of the op family."""
    if name == "silu":
        return ops.silu, ops.swiglu, _silu_backward, _swiglu_backward
    form = "none" if name == "gelu" else "tanh"
    return (
        lambda x: ops.gelu(x, form),
        lambda g, u: ops.geglu(g, u, form),
        lambda g, x: _gelu_backward(g, x, form),
        lambda g, x, u: _geglu_backward(g, x, u, form),
    )


@floats
@pytest.mark.parametrize("name", ("silu", "gelu", "gelu_tanh"))
@pytest.mark.parametrize(("T", "F"), ((1, 1), (5, 37), (3, 512), (300, 1536), (1, 100003)))
def test_activation(T, F, name, dtype, cupy_backend, rng):
    x, u, g = normal(rng, (T, 2 * F), dtype, 4.0), None, normal(rng, (T, F), dtype)
    x[0, 0] = 1000 if F > 1 else 3
    x[0, -1] = -1000
    x, u = x[:, :F], x[:, F:] / 4
    one, two, d_one, d_two = activation_ops(name)
    f, slope = slopes(name, x.astype(np.float64))
    both = np.concatenate([x, u], 1).astype(dtypes.parse(dtype))
    wide = Tensor(both, backend=cupy_backend)
    tg = Tensor(g, backend=cupy_backend)
    wu, wg = both[:, F:].astype(np.float64), g.astype(np.float64)
    cases = [(wide[:, :F], wide[:, F:])]
    cases.append(tensors(cupy_backend, both[:, :F].copy(), both[:, F:].copy()))
    for tx, tu in cases:
        size = 1 + 1000 * (np.abs(f) > 500)
        assert_close(one(tx).numpy(), f, dtype=dtype, reduce=1, scale=size)
        assert_close(two(tx, tu).numpy(), f * wu, dtype=dtype, reduce=1, scale=4 * size)
        assert_close(d_one(tg, tx).numpy(), wg * slope, dtype=dtype, reduce=1, scale=4)
        dx, du = d_two(tg, tx, tu)
        assert_close(dx.numpy(), wg * wu * slope, dtype=dtype, reduce=1, scale=16)
        assert_close(du.numpy(), wg * f, dtype=dtype, reduce=1, scale=4 * size)


@floats
@pytest.mark.parametrize(("T", "F"), ((1, 5), (3, 512), (257, 1000)))
def test_gated_matrix(T, F, dtype, cupy_backend, rng):
    from boostr.backends.cupy.activation import gated

    x = normal(rng, (T, 2 * F), dtype)
    wide = x.astype(np.float64)
    got = gated(cupy_backend, view(cupy_backend, x, 16).data, "silu")
    want = oracles.silu(wide[:, :F]) * wide[:, F:]
    assert_close(Tensor.wrap(got, cupy_backend).numpy(), want, dtype=dtype, reduce=1, scale=3)


@floats
@pytest.mark.parametrize("name", ("softmax", "log_softmax"))
@pytest.mark.parametrize("N", (1, 5, 64, 1000, 4096, 32768, 50257))
def test_softmax(N, name, dtype, cupy_backend, rng):
    x = normal(rng, (9, N), dtype, 10.0)
    want = getattr(oracles, name)(x.astype(np.float64), -1)
    got = getattr(ops, name)(view(cupy_backend, x)).numpy()
    assert_close(got, want, dtype=dtype, reduce=1, scale=1 if name == "softmax" else 10)
    x = normal(rng, (3, min(N, 1000), 7), dtype, 10.0)
    want = getattr(oracles, name)(x.astype(np.float64), 1)
    got = getattr(ops, name)(Tensor(x, backend=cupy_backend), 1).numpy()
    assert_close(got, want, dtype=dtype, reduce=1, scale=1 if name == "softmax" else 10)


# -- through the tape ----------------------------------------------------------------------------
def test_gradients_reach_the_leaves(cupy_backend, rng):
    """x -> norm -> gated -> norm with residual: gradient kernels run, and agree with numpy."""
    arrays = [normal(rng, s) for s in ((37, 64), (64,), (37, 64), (64,), (64,))]
    found = []
    for backend in (cupy_backend, "numpy"):
        leaves = [Tensor(a, backend=backend, requires_grad=True) for a in arrays]
        with dispatch.strict(backend != "numpy"):
            x, w, up, w2, b2 = leaves
            h = ops.swiglu(ops.rms_norm(x, w), up)
            y, _ = ops.layer_norm(h, w2, b2, residual=x)
            y.backward(Tensor(arrays[2], backend=backend))
        found.append([leaf.grad.numpy() for leaf in leaves])
    for mine, truth in zip(*found, strict=True):
        assert_close(mine, truth, dtype="float32", reduce=64, scale=rms(truth))


def test_past_two_to_the_31_elements(cupy_backend, monkeypatch, rng):
    """Offsets are of 64 bits: the last row of a matrix of 4.3 GB."""
    monkeypatch.undo()  # poisoning so much takes long
    rows, E = 2**20 + 3, 2048
    last, w = (normal(rng, (1, E), "bfloat16") for _ in range(2))
    x = zeros((rows, E), "bfloat16", cupy_backend)
    one, gain = tensors(cupy_backend, last, w[0])
    x[-1:].assign(one)
    np.testing.assert_array_equal(*(ops.rms_norm(t, gain)[-1].numpy() for t in (x, one)))
    np.testing.assert_array_equal(*(ops.swiglu(t, t)[-1].numpy() for t in (x, one)))
    backward = norm_ops._rms_norm_backward
    got, want = (backward(t, None, t, gain, 1e-6, 0.0, True) for t in (x, one))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.numpy()[-1:], b.numpy()[-1:])
