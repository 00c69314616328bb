"""Cross entropy and AdamW on an NVIDIA GPU: the kernels themselves, at sizes that only they see."""

import numpy as np
import oracles
import pytest
from draws import normal, tensors
from oracles_optim import adamw as adamw_oracle
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.ops.loss import cross_entropy
from boostr.ops.optim import adamw_step, global_norm

KERNEL_FLOATS = ["float32", "float16", "bfloat16"]
SHAPES = [(1, 1), (3, 8), (4, 4099), (7, 8192), (33, 8200), (3, 128_256), (2, 262_144)]


def gradient(x, targets, smoothing, rows):
    """d loss / d x in float64; rows: what each row's gradient is multiplied by."""
    p = oracles.softmax(x.astype(np.float64), -1)
    hot = np.zeros_like(p)
    counts = targets != -100
    hot[np.flatnonzero(counts), targets[counts]] = 1
    return (p - (1 - smoothing) * hot - smoothing / x.shape[1]) * (rows * counts)[:, None]


def placed(backend, x, how):
    """x as a tensor: as it is, as columns of a wider one, or off every alignment."""
    T, V = x.shape
    if how == "columns":
        wide = np.full((T, V + 13), 50, x.dtype)
        wide[:, :V] = x
        return Tensor(wide, backend=backend)[:, :V].detach()
    if how == "unaligned":
        flat = np.concatenate([np.full(3, 50, x.dtype), x.reshape(-1)])
        return Tensor(flat, backend=backend)[3:].reshape(T, V).detach()
    return Tensor(x, backend=backend)


@pytest.mark.parametrize("how", ["plain", "columns", "unaligned"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", KERNEL_FLOATS)
def test_cross_entropy_and_its_gradient(dtype, shape, how, cupy_backend, rng):
    (T, V), smoothing = shape, 0.1 if how == "columns" else 0.0
    reduction = {"plain": "mean", "columns": "sum", "unaligned": "none"}[how]
    x = normal(rng, shape, dtype, 3.0)
    targets = rng.integers(0, V, T).astype(np.int32 if how == "plain" else np.int64)
    targets[1:2] = -100
    logits = placed(cupy_backend, x, how)
    logits.requires_grad = True
    options = {"reduction": reduction, "label_smoothing": smoothing}
    loss = cross_entropy(logits, Tensor(targets, backend=cupy_backend), **options)
    want = oracles.cross_entropy(x, targets, **options)
    # -log p is a difference of numbers of the size of the logits
    assert_close(loss.numpy(), want, dtype="float32", reduce=T, scale=10)
    g = rng.standard_normal(T).astype(np.float32) if reduction == "none" else np.float32(1)
    loss.backward(Tensor(g, backend=cupy_backend))
    assert logits.grad is not None and logits.grad.dtype == dtypes.parse(dtype)
    rows = np.broadcast_to(g / (targets != -100).sum() if reduction == "mean" else g, T)
    # a difference of terms of this size; float16 rounds what is small to its subnormals
    terms = (oracles.softmax(x.astype(np.float64), -1) + smoothing / V) * np.abs(rows)[:, None]
    terms = (targets != -100)[:, None] * (terms + (2e-5 if dtype == "float16" else 0))
    want = gradient(x, targets, smoothing, rows)
    assert_close(logits.grad.numpy(), want, dtype=dtype, reduce=1, scale=terms)


def test_masked_logits(cupy_backend, rng):
    """-inf where a token is forbidden: probability and gradient 0, also for a whole 16 bytes."""
    x = normal(rng, (4, 5000), "bfloat16")
    targets = np.array([0, 50, 4999, 3000], np.int32)
    kept = np.delete(np.arange(5000), np.s_[100:3000])
    places = np.searchsorted(kept, targets)
    want = oracles.cross_entropy(x[:, kept], places, reduction="none")
    slope = gradient(x[:, kept], places, 0, np.ones(4))
    x[:, 100:3000] = -np.inf
    logits = Tensor(x, backend=cupy_backend, requires_grad=True)
    loss = cross_entropy(logits, Tensor(targets, backend=cupy_backend), reduction="none")
    assert_close(loss.numpy(), want, dtype="float32", reduce=1, scale=10)
    loss.sum().backward()
    assert logits.grad is not None
    got = logits.grad.numpy()
    assert not got[:, 100:3000].any()
    assert_close(got[:, kept], slope, dtype="bfloat16", reduce=1, scale=1e-3)


@pytest.mark.parametrize("target", [7, -1, 2**31 - 1])
def test_a_target_outside_the_vocabulary_is_nan(target, cupy_backend, rng):
    x, t = normal(rng, (2, 7)), np.array([target, 3], np.int32)
    loss = cross_entropy(*tensors(cupy_backend, x, t), reduction="none").numpy()
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


@pytest.mark.parametrize("grads", ["same", "float32"])
@pytest.mark.parametrize("mastered", [False, True])
@pytest.mark.parametrize("dtype", KERNEL_FLOATS)
def test_adamw_over_launches(dtype, mastered, grads, cupy_backend, rng):
    """Tensors of many blocks between tiny ones, views off the alignment, 130 in all."""
    sizes = [1_000_003, 4096, 4097, 1, 8, 100_000, *(int(n) for n in rng.integers(1, 9000, 124))]
    kind = dtype if grads == "same" else grads
    made, held = [], []
    for i, n in enumerate(sizes):
        p, g = normal(rng, n, dtype), normal(rng, n, kind)
        m, v = normal(rng, n, scale=0.3), normal(rng, n) ** 2
        made.append((p, g, m, v))
        off = i % 3  # in elements from an aligned start
        parts = [np.concatenate([np.zeros(off, a.dtype), a]) for a in (p, g, m, v)]
        parts.append(parts[0].astype(np.float32))
        held.append([Tensor(a, backend=cupy_backend)[off:] for a in parts])
    options = {"lr": 1e-2, "weight_decay": 0.1, "grad_scale": 0.5}
    params, gs, ms, vs, masters = map(list, zip(*held, strict=True))
    adamw_step(params, gs, ms, vs, 5, masters=masters if mastered else None, **options)
    for (p, g, m, v), got in zip(made, held, strict=True):
        want = adamw_oracle(p, g, m, v, 5, **options)
        assert_close(got[0].numpy(), want[0], dtype=dtype, reduce=2)
        assert_close(got[2].numpy(), want[1], dtype="float32", reduce=2)
        assert_close(got[3].numpy(), want[2], dtype="float32", reduce=2)
        if mastered:
            assert_close(got[4].numpy(), want[0], dtype="float32", reduce=2)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for _, g, _, _ in made))
    assert_close(global_norm(gs).numpy(), norm, dtype="float32", reduce=1)
