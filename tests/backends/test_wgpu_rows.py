"""WGSL kernels over rows against the float64 oracle, strictly (no composite steps in)."""

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import normal, tensors, view
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close, rms

from boostr import Tensor, dispatch, dtypes, ops
from boostr.ops import norm as norm_ops
from boostr.ops.activation import _geglu_backward, _gelu_backward, _silu_backward, _swiglu_backward
from boostr.ops.rope import _rope_backward

FLOATS = ("float32", "float16", "bfloat16")
floats = pytest.mark.parametrize("dtype", FLOATS)
# the tiles of a software adapter, those of a large GPU, and a GPU without any extras
DEVICES = {"own": {}, "large": {"kind": "discrete"}, "bare": BARE | {"kind": "discrete"}}


@pytest.fixture
def gpu():
    with strict_wgpu() as backend:
        yield backend


@pytest.fixture(params=DEVICES)
def any_gpu(request):
    with strict_wgpu(**DEVICES[request.param]) as backend:
        yield backend


# -- norm ----------------------------------------------------------------------------------------
def check_rms_norm(backend, rows, E, dtype, rng):
    x, r, w = normal(rng, (rows, E), dtype), normal(rng, (rows, E), dtype), normal(rng, (E,), dtype)
    a, b, c = tensors(backend, x, r, w)
    got = ops.rms_norm(view(backend, x), c, eps=1e-5, weight_offset=1.0)
    want, _ = oracles.rms_norm(x, w, 1e-5, None, 1.0)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2)
    got, sums = ops.rms_norm(a, c, eps=1e-5, residual=b)
    want, h = oracles.rms_norm(x, w, 1e-5, r)
    assert_close(sums.numpy(), h, dtype=dtype, reduce=1)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2, c=4)


@floats
@pytest.mark.parametrize("E", (1, 7, 12, 100, 1000, 2056, 20008))
def test_rms_norm(E, dtype, gpu, rng):
    check_rms_norm(gpu, 5, E, dtype, rng)


@pytest.mark.parametrize("E", (33, 64, 576, 5000))
def test_rms_norm_on_any_gpu(E, any_gpu, rng):
    check_rms_norm(any_gpu, 37 if E == 64 else 3, E, "bfloat16", rng)


@pytest.mark.parametrize("E", (3, 48, 700))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_layer_norm(dtype, E, any_gpu, rng):
    x, r = normal(rng, (5, E), dtype), normal(rng, (5, E), dtype)
    w, bias = normal(rng, (E,)), normal(rng, (E,))
    a, b, c, d = tensors(any_gpu, x, r, w, bias)
    want, _ = oracles.layer_norm(x, w, bias, 1e-2)
    got = ops.layer_norm(view(any_gpu, x), c, d, eps=1e-2)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=4)
    want, h = oracles.layer_norm(x, w, None, 1e-2, r)
    got, sums = ops.layer_norm(a, c, eps=1e-2, residual=b)
    assert_close(sums.numpy(), h, dtype=dtype, reduce=1)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=4, c=4)


@floats
def test_norm_of_heads_in_a_fused_product(dtype, gpu, rng):
    x, w = normal(rng, (50, 3 * 64), dtype), normal(rng, (64,), "float32")
    heads = view(gpu, x, 128).reshape(50, 3, 64)
    got = ops.rms_norm(heads, Tensor(w, backend=gpu))
    want, _ = oracles.rms_norm(x.reshape(50, 3, 64), w)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2)


def check_norm_gradient(backend, kind, rows, E, dtype, rng):
    g, p, h = (normal(rng, (rows, E), dtype) for _ in range(3))
    w = normal(rng, (E,), "float32" if E == 64 else dtype)
    passed = None if rows == 1 else p
    tg, tp, th, tw = tensors(backend, g, passed, h, w)
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
    again = norm_ops._rms_norm_backward(tg, tp, th, tw, 1e-2, 0.0, False)
    assert again[1] is None


@floats
@pytest.mark.parametrize(("rows", "E"), ((1, 1), (5, 33), (900, 64), (7, 576), (3, 2056)))
@pytest.mark.parametrize("kind", ("rms", "layer"))
def test_norm_gradient(kind, rows, E, dtype, gpu, rng):
    check_norm_gradient(gpu, kind, rows, E, dtype, rng)


@pytest.mark.parametrize(("rows", "E"), ((300, 33), (1100, 64), (4, 2048)))
@pytest.mark.parametrize("kind", ("rms", "layer"))
def test_norm_gradient_on_any_gpu(kind, rows, E, any_gpu, rng):
    check_norm_gradient(any_gpu, kind, rows, E, "bfloat16", rng)


# -- rope ----------------------------------------------------------------------------------------
SIZES = ((64, 32), (80, 16), (96, 24), (6, 3), (5, 2), (128, 64))


@floats
@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), SIZES)
def test_rope(D, half, layout, dtype, gpu, rng):
    T, H, S = 9, 6, 500
    x = normal(rng, (T, H * D), dtype)
    cos, sin = normal(rng, (S, half)), normal(rng, (S, half))
    rows = rng.integers(0, S, T).astype(np.int32)
    rows[0] = S - 1
    c, s, p = tensors(gpu, cos, sin, rows)
    turn = layout == "interleaved"
    want = oracles.rope(x.reshape(T, H, D), cos, sin, rows, turn)
    for rest in (2 * D, 3):
        a = view(gpu, x, rest).reshape(T, H, D)
        assert_close(ops.rope(a, c, s, p, layout=layout).numpy(), want, dtype=dtype, reduce=2)
    back = oracles.rope(x.reshape(T, H, D), cos, sin, rows, turn, inverse=True)
    got = _rope_backward(Tensor(x.reshape(T, H, D), backend=gpu), c, s, p, layout).numpy()
    assert_close(got, back, dtype=dtype, reduce=2)


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
@pytest.mark.parametrize(("T", "F"), ((1, 1), (5, 37), (3, 512)))
def test_activation(T, F, name, dtype, gpu, rng):
    x, g = normal(rng, (T, 2 * F), dtype, 4.0), normal(rng, (T, F), dtype)
    x[0, 0] = 1000 if F > 1 else 3
    x[0, -1] = -1000
    both = np.concatenate([x[:, :F], x[:, F:] / 4], 1).astype(dtypes.parse(dtype))
    one, two, d_one, d_two = activation_ops(name)
    f, slope = slopes(name, both[:, :F].astype(np.float64))
    wide, tg = tensors(gpu, both, g)
    wu, wg = both[:, F:].astype(np.float64), g.astype(np.float64)
    size = 1 + 1000 * (np.abs(f) > 500)
    halves = wide[:, :F], wide[:, F:]
    for tx, tu in (halves, tensors(gpu, both[:, :F].copy(), both[:, F:].copy())):
        assert_close(one(tx).numpy(), f, dtype=dtype, reduce=1)
        assert_close(two(tx, tu).numpy(), f * wu, dtype=dtype, reduce=1, scale=3 * size)
        assert_close(d_one(tg, tx).numpy(), wg * slope, dtype=dtype, reduce=1, scale=3)
        dx, du = d_two(tg, tx, tu)
        assert_close(dx.numpy(), wg * slope * wu, dtype=dtype, reduce=1, scale=3)
        assert_close(du.numpy(), wg * f, dtype=dtype, reduce=1, scale=3 * size)


def check_softmax(backend, name, rows, N, dtype, rng):
    x = normal(rng, (rows, N), dtype, 10.0)
    want = getattr(oracles, name)(x.astype(np.float64), -1)
    got = getattr(ops, name)(view(backend, x)).numpy()
    assert_close(got, want, dtype=dtype, reduce=1, scale=1 if name == "softmax" else 10)


@floats
@pytest.mark.parametrize("name", ("softmax", "log_softmax"))
@pytest.mark.parametrize("N", (1, 5, 64, 1000, 4096, 9000, 8195))
def test_softmax(N, name, dtype, gpu, rng):
    check_softmax(gpu, name, 9, N, dtype, rng)


@pytest.mark.parametrize("name", ("softmax", "log_softmax"))
@pytest.mark.parametrize(("rows", "N"), ((70, 65), (70, 64), (3, 2048), (270, 8200), (2, 40000)))
def test_softmax_on_any_gpu(rows, N, name, any_gpu, rng):
    check_softmax(any_gpu, name, rows, N, "bfloat16", rng)


@pytest.mark.parametrize("N", (5, 64, 8200, 33000))
def test_masked_softmax(N, gpu, rng):
    """-inf has no weight, whole runs of it too; a row of nothing else is zero; nan spreads."""
    x = normal(rng, (4, N))
    x[0, 1:] = x[1, : N // 2] = x[2] = -np.inf
    x[3, N // 2] = np.nan
    got = ops.softmax(Tensor(x, backend=gpu)).numpy()
    assert got[0, 0] == 1 and not got[0, 1:].any() and not got[2].any()
    assert np.isnan(got[3]).all()
    want = oracles.softmax(x[1].astype(np.float64), -1)
    assert_close(got[1], want, dtype="float32", reduce=1)
    got = ops.log_softmax(Tensor(x, backend=gpu)).numpy()
    assert got[0, 0] == 0 and np.isneginf(got[0, 1:]).all() and np.isnan(got[2]).all()


# -- large arrays, whole programs ----------------------------------------------------------------
def test_arrays_beyond_a_binding(rng):
    """Rows go through in pieces where a kernel cannot see all of them."""
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


def test_gradients_reach_the_leaves(gpu, rng):
    """x -> norm -> gated -> norm with residual: gradient kernels run, and agree with numpy."""
    arrays = [normal(rng, s) for s in ((37, 64), (64,), (37, 64), (64,), (64,))]
    found = []
    for backend in (gpu, "numpy"):
        leaves = [Tensor(a, backend=backend, requires_grad=True) for a in arrays]
        with dispatch.strict(backend != "numpy"):
            x, w, up, w2, b2 = leaves
            h = ops.swiglu(ops.rms_norm(x, w), up)
            y, _ = ops.layer_norm(h, w2, b2, residual=x)
            y.backward(Tensor(arrays[2], backend=backend))
        found.append([leaf.grad.numpy() for leaf in leaves])
    for mine, truth in zip(*found, strict=True):
        assert_close(mine, truth, dtype="float32", reduce=64, scale=rms(truth))
