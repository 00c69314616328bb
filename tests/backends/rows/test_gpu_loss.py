"""Cross entropy and AdamW on a GPU: the kernels themselves, strictly, at all their tiles."""

import numpy as np
import oracles
import pytest
from draws import normal, tensors
from oracles_optim import adamw as adamw_oracle
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.ops.loss import cross_entropy
from boostr.ops.optim import adamw, adamw_step, global_norm

FLOATS = ["float32", "float16", "bfloat16"]
SHAPES = [(1, 1), (3, 8), (33, 500), (4, 4099), (7, 8192), (33, 8200), (2, 9000),
          (3, 128_256), (2, 262_144)]  # fmt: skip


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


def check_cross_entropy(backend, dtype, shape, how, rng):
    (T, V), smoothing = shape, 0.1 if how == "columns" else 0.0
    reduction = {"plain": "mean", "columns": "sum", "unaligned": "none"}[how]
    x = normal(rng, shape, dtype, 3.0)
    wide = how != "plain" and backend.name == "cupy"
    targets = rng.integers(0, V, T).astype(np.int64 if wide else np.int32)
    targets[1:2] = -100
    logits = placed(backend, x, how)
    logits.requires_grad = True
    options = {"reduction": reduction, "label_smoothing": smoothing}
    loss = cross_entropy(logits, Tensor(targets, backend=backend), **options)
    want = oracles.cross_entropy(x, targets, **options)
    # -log p is a difference of numbers of the size of the logits
    assert_close(loss.numpy(), want, dtype="float32", reduce=T, scale=10)
    g = rng.standard_normal(T).astype(np.float32) if reduction == "none" else np.float32(1)
    loss.backward(Tensor(g, backend=backend))
    assert logits.grad is not None and logits.grad.dtype == dtypes.parse(dtype)
    rows = np.broadcast_to(g / (targets != -100).sum() if reduction == "mean" else g, T)
    # a difference of terms of this size; float16 rounds what is small to its subnormals
    terms = (oracles.softmax(x.astype(np.float64), -1) + smoothing / V) * np.abs(rows)[:, None]
    terms = (targets != -100)[:, None] * (terms + (2e-5 if dtype == "float16" else 0))
    want = gradient(x, targets, smoothing, rows)
    assert_close(logits.grad.numpy(), want, dtype=dtype, reduce=1, scale=terms)


@pytest.mark.parametrize("how", ["plain", "columns", "unaligned"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_and_its_gradient(dtype, shape, how, gpu, rng):
    check_cross_entropy(gpu, dtype, shape, how, rng)


@pytest.mark.parametrize("shape", [(33, 500), (300, 40), (2, 40000)])
def test_cross_entropy_on_any_gpu(shape, any_gpu, rng):
    check_cross_entropy(any_gpu, "bfloat16", shape, "columns", rng)


def test_masked_logits(gpu, rng):
    """-inf where a token is forbidden: probability and gradient 0, also for a whole 16 bytes."""
    x = normal(rng, (4, 5000), "bfloat16")
    targets = np.array([0, 50, 4999, 3000], np.int32)
    kept = np.delete(np.arange(5000), np.s_[100:3000])
    places = np.searchsorted(kept, targets)
    want = oracles.cross_entropy(x[:, kept], places, reduction="none")
    slope = gradient(x[:, kept], places, 0, np.ones(4))
    x[:, 100:3000] = -np.inf
    logits = Tensor(x, backend=gpu, requires_grad=True)
    loss = cross_entropy(logits, Tensor(targets, backend=gpu), reduction="none")
    assert_close(loss.numpy(), want, dtype="float32", reduce=1, scale=10)
    loss.sum().backward()
    assert logits.grad is not None
    got = logits.grad.numpy()
    assert not got[:, 100:3000].any()
    assert_close(got[:, kept], slope, dtype="bfloat16", reduce=1, scale=1e-3)


@pytest.mark.parametrize("target", [7, -1, 2**31 - 1])
def test_a_target_outside_the_vocabulary_is_nan(target, gpu, rng):
    x, t = normal(rng, (2, 7)), np.array([target, 3], np.int32)
    loss = cross_entropy(*tensors(gpu, x, t), reduction="none").numpy()
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


@pytest.mark.parametrize("V", [40, 9000])
def test_a_nan_is_seen(V, gpu, rng):
    """Not taken for a masked logit: neither in the loss nor in the gradient."""
    x = normal(rng, (3, V), "bfloat16")
    x[1, V // 2] = np.nan
    logits = Tensor(x, backend=gpu, requires_grad=True)
    loss = cross_entropy(logits, Tensor(np.zeros(3, np.int32), backend=gpu), reduction="none")
    np.testing.assert_array_equal(np.isnan(loss.numpy()), [False, True, False])
    loss.sum().backward()
    assert logits.grad is not None
    bad = np.isnan(logits.grad.numpy().astype(np.float32))
    assert bad[1].all() and not bad[0].any() and not bad[2].any()


def test_no_row_counts(gpu, rng):
    x, t = tensors(gpu, normal(rng, (2, 4)), np.full(2, -100, np.int32))
    assert np.isnan(cross_entropy(x, t).item())
    assert cross_entropy(x, t, reduction="sum").item() == 0


# -- optimizer -----------------------------------------------------------------------------------
SIZES = {
    "few": [4099, 512, 1, 8, 2, 37, 100, 1025, 7, 33],
    "several launches": [1_000_003, 4096, 4097, 1, 8, 100_000, *(71 * i for i in range(1, 125))],
}


@pytest.mark.parametrize("grads", ["same", "float32"])
@pytest.mark.parametrize("mastered", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", SIZES)
def test_adamw(sizes, dtype, mastered, grads, gpu, rng):
    """Tensors of many blocks between tiny ones, views off the alignment whose neighbours stay."""
    kind = dtype if grads == "same" else grads
    made, held, roots = [], [], []
    for i, n in enumerate(SIZES[sizes]):
        p, g = normal(rng, n, dtype), normal(rng, n, kind)
        m, v = normal(rng, n, scale=0.3), normal(rng, n) ** 2
        made.append((p, g, m, v))
        off = i % 3  # in elements from an aligned start
        parts = [np.concatenate([np.full(off, 7, a.dtype), a]) for a in (p, g, m, v)]
        parts.append(parts[0].astype(np.float32))
        parts[0] = np.concatenate([parts[0], np.full(3, 7, p.dtype)])
        roots.append((Tensor(parts[0], backend=gpu), off, n))
        held.append([roots[-1][0][off : off + n].detach(),
                     *(Tensor(a, backend=gpu)[off:].detach() for a in parts[1:])])  # fmt: skip
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
    for root, off, n in roots:
        rest = root.numpy().astype(np.float32)
        assert (rest[:off] == 7).all() and (rest[off + n :] == 7).all()
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for _, g, _, _ in made))
    assert_close(global_norm(gs).numpy(), norm, dtype="float32", reduce=1)


@pytest.mark.parametrize("step", [1, 300, 100_000])
def test_bias_correction_of_a_step_on_the_device(step, gpu, rng):
    """1 - beta^step, of which a difference would lose half the digits at first."""
    p, g, m, v = (normal(rng, 64) for _ in range(4))
    v = v * v
    held = tensors(gpu, p.copy(), g, m.copy(), v.copy(), np.array([step], np.int32))
    adamw(*held[:4], held[4], lr=0.1)
    want = adamw_oracle(p, g, m, v, step, lr=0.1)
    assert_close(held[0].numpy(), want[0], dtype="float32", reduce=2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_global_norm(dtype, any_gpu, rng):
    arrays = [normal(rng, n, dtype) for n in (1, 7, 20_000, 4096)]
    held = tensors(any_gpu, *arrays)
    for parts in (arrays, [arrays[2][3:]]):
        want = np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in parts))
        got = global_norm(held if parts is arrays else [held[2][3:]])
        assert_close(got.numpy(), want, dtype="float32", reduce=1)
