"""The CPU kernels of training against the oracle, strictly, on 1 and 2 threads: gradients of rows,
cross-entropy, AdamW."""

import numpy as np
import oracles
import pytest
from backends.rows.test_gpu_loss import check_cross_entropy
from backends.rows.test_gpu_rows import (
    activation_ops,
    check_again,
    check_norm_gradient,
    slopes,
)
from backends.rows.test_gpu_tables import TOKENS, check_embedding_gradient
from backends.test_numpy_kernels import columns, numpy_backend, pool  # noqa: F401  (fixtures)
from draws import normal, tensors
from oracles_optim import adamw as oracle
from tolerance import assert_close

from boostr import Tensor, dispatch
from boostr.errors import FallbackError
from boostr.ops.linear import linear_input_gradient, linear_weight_gradient
from boostr.ops.loss import cross_entropy
from boostr.ops.optim import adamw, adamw_step, global_norm
from boostr.ops.rope import _rope_backward


@pytest.mark.parametrize("E", (1, 7, 33, 64, 576, 1000))
@pytest.mark.parametrize(("rows", "through"), ((1, True), (37, False), (1501, True)))
@pytest.mark.parametrize("kind", ("rms", "layer"))
def test_norm(kind, rows, through, E, numpy_backend, rng):  # noqa: F811
    check_norm_gradient(numpy_backend, kind, rows, E, "float32", rng, through)


@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), ((64, 32), (80, 16), (6, 3), (5, 2)))
def test_rope(layout, D, half, numpy_backend, rng):  # noqa: F811
    g, cos, sin = normal(rng, (9, 3 * D)), normal(rng, (50, half)), normal(rng, (50, half))
    positions = rng.integers(0, 50, 9).astype(np.int32)
    a, c, s, p = tensors(numpy_backend, columns(g, D), cos, sin, positions)
    got = _rope_backward(a.reshape(9, 3, D), c, s, p, layout)
    turned = g.reshape(9, 3, D), cos, sin, positions, layout == "interleaved"
    assert_close(got.numpy(), oracles.rope(*turned, inverse=True), dtype="float32", reduce=2)


@pytest.mark.parametrize("name", ("silu", "gelu", "gelu_tanh"))
@pytest.mark.parametrize("F", (1, 37, 512, 1536))
def test_activation(name, F, numpy_backend, rng):  # noqa: F811
    x, up, g = normal(rng, (5, F), scale=4), normal(rng, (5, F)), normal(rng, (5, F))
    x[0, 0], x[1, 0] = 100, -100
    f, slope = slopes(name, x.astype(np.float64))
    size = 1 + np.abs(x)
    tx, tu, tg = tensors(numpy_backend, columns(x), columns(up), columns(g))
    _, gated, one, two = activation_ops(name)
    exact = {"dtype": "float32", "reduce": 1}
    assert_close(one(tg, tx).numpy(), g * slope, scale=3, **exact)
    dx, dup = two(tg, tx, tu)
    assert_close(dx.numpy(), g * slope * up, scale=3, **exact)
    assert_close(dup.numpy(), g * f, scale=3 * size, **exact)
    check_again(two(tg, tx, tu, True), (dx, dup, gated(tx, tu)))


@pytest.mark.parametrize(("T", "V", "E"), TOKENS)
def test_embedding(T, V, E, numpy_backend, rng):  # noqa: F811
    c = max(16.0, 2 * T**0.5)  # token by token in one accumulator
    for kind in (np.int32, np.int64):
        check_embedding_gradient(numpy_backend, T, V, E, "float32", "float32", kind, rng, c)


@pytest.mark.parametrize("how", ("plain", "columns", "unaligned"))
@pytest.mark.parametrize("shape", ((1, 1), (3, 8), (33, 500), (4, 4099), (300, 40), (2, 40000)))
def test_cross_entropy(shape, how, numpy_backend, rng):  # noqa: F811
    check_cross_entropy(numpy_backend, "float32", shape, how, rng)


@pytest.mark.parametrize("target", (7, -1, 2**31 - 1))
def test_a_target_outside_the_vocabulary_is_nan(target, numpy_backend, rng):  # noqa: F811
    x, t = normal(rng, (2, 7)), np.array([target, 3], np.int32)
    loss = cross_entropy(*tensors(numpy_backend, x, t), reduction="none").numpy()
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


def test_logits_that_are_masked_or_nan(numpy_backend, rng):  # noqa: F811
    x = normal(rng, (3, 100))
    x[0, 10:90], x[1, 50] = -np.inf, np.nan
    logits = Tensor(x, backend=numpy_backend, requires_grad=True)
    targets = Tensor(np.array([5, 3, 2], np.int32), backend=numpy_backend)
    loss = cross_entropy(logits, targets, reduction="none")
    want = oracles.cross_entropy(np.delete(x[:1], np.s_[10:90], 1), np.array([5]))
    assert_close(loss.numpy()[0], want, dtype="float32", reduce=1, scale=10)
    loss.backward(Tensor(np.ones(3, np.float32), backend=numpy_backend))
    assert logits.grad is not None
    got = logits.grad.numpy()
    assert not got[0, 10:90].any() and np.isfinite(got[[0, 2]]).all()
    assert np.isnan(loss.numpy()[1]) and np.isnan(got[1]).all()


# -- products ------------------------------------------------------------------------------------
@pytest.mark.parametrize("stored", ("float32", "bfloat16", "float16"))
@pytest.mark.parametrize(("T", "N", "K"), ((1, 1, 1), (5, 40, 33), (33, 1300, 70), (600, 7, 100)))
def test_products(T, N, K, stored, numpy_backend, rng):  # noqa: F811
    """More inputs than one part has, and rows than one item; alone and added to something."""
    g, w, x = normal(rng, (T, N)), normal(rng, (N, K), stored), normal(rng, (T, K))
    first, second = normal(rng, (T, K)), normal(rng, (N, K))
    tg, tw, tx = tensors(numpy_backend, columns(g), w, columns(x))
    dx, dw = g.astype(np.float64) @ w.astype(np.float64), g.T.astype(np.float64) @ x
    got = (
        linear_input_gradient(tg, tw, tx.dtype, None),
        linear_weight_gradient(tg, tx, tx.dtype, None),
    )
    wide, deep = (
        {"dtype": "float32", "reduce": R, "c": max(16.0, 2 * R**0.5)} for R in (N, T)
    )  # a sum in one accumulator
    assert_close(got[0].numpy(), dx, **wide)
    assert_close(got[1].numpy(), dw, **deep)
    held = tensors(numpy_backend, first.copy(), second.copy())
    assert linear_input_gradient(tg, tw, tx.dtype, held[0]) is held[0]
    assert linear_weight_gradient(tg, tx, tx.dtype, held[1]) is held[1]
    assert_close(held[0].numpy(), first + dx, **wide)
    assert_close(held[1].numpy(), second + dw, **deep)


# -- optimizer -----------------------------------------------------------------------------------
SIZES = (4099, 512, 0, 1, 8, 100_003, 16_384, 2, 37)


def test_adamw_of_many(numpy_backend, rng):  # noqa: F811
    """Tensors of many items between tiny ones, whose neighbours in memory stay as they are."""
    made, held, roots = [], [], []
    for n in SIZES:
        p, g, m, v = (normal(rng, n) for _ in range(4))
        made.append((p, g, m, v**2))
        root = [np.concatenate([[7.0, 7.0], a, [7.0]]).astype(np.float32) for a in made[-1]]
        roots += root
        held.append([Tensor(a, backend=numpy_backend)[2:-1].detach() for a in root])
    options = {"lr": 1e-2, "weight_decay": 0.1, "grad_scale": 0.5}
    params, grads, ms, vs = map(list, zip(*held, strict=True))
    adamw_step(params, grads, ms, vs, 5, **options)
    for (p, g, m, v), got in zip(made, held, strict=True):
        want = oracle(p, g, m, v, 5, **options)
        for a, b in zip((got[0], *got[2:]), want, strict=True):
            assert_close(a.numpy(), b, dtype="float32", reduce=2)
    for root in roots:
        assert (root[:2] == 7).all() and root[-1] == 7
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for _, g, _, _ in made))
    assert_close(global_norm(grads).numpy(), norm, dtype="float32", reduce=1)


@pytest.mark.parametrize("step", (1, 300, 100_000))
def test_bias_correction_of_a_step_in_a_tensor(step, numpy_backend, rng):  # noqa: F811
    p, g, m, v = (normal(rng, 64) for _ in range(4))
    held = tensors(numpy_backend, p.copy(), g, m.copy(), v * v, np.array([step], np.int32))
    adamw(*held[:4], held[4], lr=0.1)
    want = oracle(p, g, m, v * v, step, lr=0.1)
    assert_close(held[0].numpy(), want[0], dtype="float32", reduce=2)


def test_refusals(numpy_backend, rng):  # noqa: F811
    p, g, m, v = ([Tensor(normal(rng, 8), backend=numpy_backend)] for _ in range(4))
    half = [p[0].to("bfloat16")]
    with pytest.raises(FallbackError, match="16-bit parameters"):
        adamw_step(half, g, m, v, 1, lr=0.1, masters=p)
    with pytest.raises(FallbackError, match="bfloat16 is not float32"):
        global_norm(half)
    with dispatch.strict(False):
        adamw_step(half, g, m, v, 1, lr=0.1, masters=p)
