"""GPU kernels over rows against the float64 oracle, strictly (no composite steps in)."""

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import large, normal, tensors, view
from tolerance import assert_close, rms

from boostr import Tensor, dispatch, dtypes, ops
from boostr.ops import norm as norm_ops
from boostr.ops.activation import _geglu_backward, _gelu_backward, _silu_backward, _swiglu_backward
from boostr.ops.rope import _rope_backward

FLOATS = ("float32", "float16", "bfloat16")
floats = pytest.mark.parametrize("dtype", FLOATS)
# One element, off the runs of 16 bytes, part of a warp, models' widths, past what registers hold.
WIDTHS = (1, 7, 12, 33, 64, 100, 576, 1000, 2048, 2056, 4096, 5000, 8192, 12344, 20008, 40000)
# pipelines of their own, which take seconds to compile for a processor
STEEP = (7, 12, 100, 1000, 2048, 4096, 5000, 8192, 12344, 20008, 40000)
widths = pytest.mark.parametrize("E", WIDTHS)


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


@widths
@floats
@pytest.mark.parametrize("rows", (5, 1100))
def test_rms_norm(rows, dtype, E, gpu, rng):
    check_rms_norm(gpu, min(rows, max(5, 2_000_000 // E)), E, dtype, rng)


@pytest.mark.parametrize("E", (33, 64, 576, 5000))
def test_rms_norm_on_any_gpu(E, any_gpu, rng):
    check_rms_norm(any_gpu, 37 if E == 64 else 3, E, "bfloat16", rng)


def check_layer_norm(backend, rows, E, dtype, stored, rng):
    x, r = normal(rng, (rows, E), dtype), normal(rng, (rows, E), dtype)
    w, bias = normal(rng, (E,), stored), normal(rng, (E,), stored)
    a, b, c, d = tensors(backend, x, r, w, bias)
    want, _ = oracles.layer_norm(x, w, bias, 1e-2)
    got = ops.layer_norm(view(backend, x), c, d, eps=1e-2)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=4)
    want, h = oracles.layer_norm(x, w, None, 1e-2, r)
    got, sums = ops.layer_norm(a, c, eps=1e-2, residual=b)
    assert_close(sums.numpy(), h, dtype=dtype, reduce=1)
    # the rounding of h counts 1/sqrt(eps) times where h has no variance
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=4 if E > 1 else 40, c=4)


@widths
@floats
def test_layer_norm(dtype, E, gpu, rng):
    check_layer_norm(gpu, 5 if E > 5000 else 700, E, dtype, dtype, rng)


@pytest.mark.parametrize("E", (3, 48, 700))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_layer_norm_on_any_gpu(dtype, E, any_gpu, rng):
    check_layer_norm(any_gpu, 5, E, dtype, "float32", rng)


@floats
def test_norm_of_heads_in_a_fused_product(dtype, gpu, rng):
    x, w = normal(rng, (50, 3 * 64), dtype), normal(rng, (64,), "float32")
    heads = view(gpu, x, 128).reshape(50, 3, 64)
    got = ops.rms_norm(heads, Tensor(w, backend=gpu))
    want, _ = oracles.rms_norm(x.reshape(50, 3, 64), w)
    assert_close(got.numpy(), want, dtype=dtype, reduce=1, scale=2)


def check_norm_gradient(backend, kind, rows, E, dtype, rng, through=True):
    """through: h itself gets a gradient too."""
    g, p, h = (normal(rng, (rows, E), dtype) for _ in range(3))
    w = normal(rng, (E,), "float32" if E in (64, 576) else dtype)
    passed = p if through else None
    tg, tp, th, tw = tensors(backend, g, passed, h, w)
    more = 0.0 if passed is None else passed
    if kind == "rms":
        op, options = norm_ops._rms_norm_backward, (1e-2, 1.0)
        want = oracles_rows.rms_norm_backward(g, h, w, *options, more)
    else:
        op, options = norm_ops._layer_norm_backward, (1e-2,)
        want = oracles_rows.layer_norm_backward(g, h, w, *options, more)
    runs = [op(tg, tp, th, tw, *options, True) for _ in range(2)]
    steep = 10 if E == 1 else 1  # 1 / sqrt(eps) where a row has no variance
    assert_close(runs[0][0].numpy(), want[0], dtype=dtype, reduce=1, scale=4 * steep)
    for mine, truth in zip(runs[0][1:], want[1:], strict=True):
        assert_close(mine.numpy(), truth, dtype=w.dtype, reduce=rows, scale=2)
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert op(tg, tp, th, tw, *options, False)[1] is None


@pytest.mark.parametrize("E", [large(E) if E in STEEP else E for E in WIDTHS])
@pytest.mark.parametrize(("dtype", "rows", "through"), [
    *((dtype, 3, through) for dtype in FLOATS for through in (True, False)),
    *((dtype, rows, dtype == "bfloat16") for dtype in FLOATS for rows in (1, 1501)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ("rms", "layer"))
def test_norm_gradient(kind, rows, through, dtype, E, gpu, rng):
    check_norm_gradient(gpu, kind, min(rows, max(3, 2_500_000 // E)), E, dtype, rng, through)


@pytest.mark.parametrize(("rows", "E"), ((300, 33), (1100, 64), (4, 2048)))
@pytest.mark.parametrize("kind", ("rms", "layer"))
def test_norm_gradient_on_any_gpu(kind, rows, E, any_gpu, rng):
    check_norm_gradient(any_gpu, kind, rows, E, "bfloat16", rng)


# -- rope ----------------------------------------------------------------------------------------
SIZES = ((64, 32), (80, 40), (80, 16), (96, 48), (128, 64), (256, 128), (6, 3), (5, 2), (512, 256),
         (96, 24))  # fmt: skip


def rope_case(rng, D, half, T, S=5000):
    cos, sin = normal(rng, (S, half)), normal(rng, (S, half))
    rows = rng.integers(0, S, T).astype(np.int32)
    rows[0] = S - 1
    return cos, sin, rows


@floats
@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), SIZES)
@pytest.mark.parametrize(("T", "H"), ((1, 9), (9, 3), (9, 6), (700, 5)))
def test_rope(T, H, D, half, layout, dtype, gpu, rng):
    x = normal(rng, (T, H * D), dtype)
    cos, sin, rows = rope_case(rng, D, half, T)
    c, s, p = tensors(gpu, cos, sin, rows)
    turned = x.reshape(T, H, D), cos, sin, rows, layout == "interleaved"
    want, back = oracles.rope(*turned), oracles.rope(*turned, inverse=True)
    for rest in (0, 2 * D, 3):
        a = view(gpu, x, rest).reshape(T, H, D)
        assert_close(ops.rope(a, c, s, p, layout=layout).numpy(), want, dtype=dtype, reduce=2)
        assert_close(_rope_backward(a, c, s, p, layout).numpy(), back, dtype=dtype, reduce=2)


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
        lambda g, x, u, again=False: _geglu_backward(g, x, u, form, again),
    )


@floats
@pytest.mark.parametrize("name", ("silu", "gelu", "gelu_tanh"))
@pytest.mark.parametrize(("T", "F"), ((1, 1), (5, 37), (3, 512), (300, 1536), (1, 100003)))
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
        check_again(d_two(tg, tx, tu, True), (dx, du, two(tx, tu)))


def check_again(found, parts):
    """The gradients and the result in one are what they are on their own."""
    for mine, part in zip(found, parts, strict=True):
        assert_close(mine.numpy(), part.numpy(), dtype=part.dtype, reduce=1)


def check_softmax(backend, name, x, axis, dtype):
    want = getattr(oracles, name)(x.astype(np.float64), axis)
    x = view(backend, x) if axis == -1 else Tensor(x, backend=backend)
    got = getattr(ops, name)(x, axis).numpy()
    assert_close(got, want, dtype=dtype, reduce=1, scale=1 if name == "softmax" else 10)


@floats
@pytest.mark.parametrize("name", ("softmax", "log_softmax"))
@pytest.mark.parametrize("N", (1, 5, 64, 1000, 4096, 8195, 9000, 32768, 50257))
def test_softmax(N, name, dtype, gpu, rng):
    check_softmax(gpu, name, normal(rng, (9, N), dtype, 10.0), -1, dtype)
    check_softmax(gpu, name, normal(rng, (3, min(N, 1000), 7), dtype, 10.0), 1, dtype)


@pytest.mark.parametrize("name", ("softmax", "log_softmax"))
@pytest.mark.parametrize(("rows", "N"), ((70, 65), (70, 64), (3, 2048), (270, 8200), (2, 40000)))
def test_softmax_on_any_gpu(rows, N, name, any_gpu, rng):
    check_softmax(any_gpu, name, normal(rng, (rows, N), "bfloat16", 10.0), -1, "bfloat16")


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


# -- through the tape ----------------------------------------------------------------------------
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
