"""AdamW, SGD and Lion against their formulas in float64, over several steps."""

import numpy as np
import pytest
from draws import normal, refused, tensors
from tolerance import assert_close

from boostr import Tensor, train
from boostr.errors import OptionError


def truth(name, p, grads, lr):
    """The parameter after steps with these gradients, as torch and the Lion paper have it."""
    p, m, v = p.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(grads, 1):
        if name == "AdamW":
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            p = p * (1 - lr * 0.1)
            p = p - lr * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        elif name == "SGD":
            m = 0.9 * m + g + 0.1 * p
            p = p - lr * m
        else:
            p = p * (1 - lr * 0.1) - lr * np.sign(0.9 * m + 0.1 * g)
            m = 0.99 * m + 0.01 * g
    return p


MADE = {
    "AdamW": lambda p, lr: train.AdamW(p, lr, betas=(0.8, 0.9), weight_decay=0.1),
    "SGD": lambda p, lr: train.SGD(p, lr, momentum=0.9, weight_decay=0.1),
    "Lion": lambda p, lr: train.Lion(p, lr, weight_decay=0.1),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_steps(name, stored, backend, rng):
    values, lr = normal(rng, (5, 7), stored), 0.05
    (p, frozen) = tensors(backend, values.copy(), normal(rng, (3,)))
    p.requires_grad = True
    optimizer = MADE[name]([p, frozen, p], lr)
    assert len(optimizer.params) == 1
    grads = [normal(rng, (5, 7)) for _ in range(4)]
    for g in grads:
        p.grad = Tensor(g, backend=backend)
        optimizer.step()
    want = truth(name, values, grads, lr)
    held = p if stored == "float32" else optimizer.tensors()["master"][0]
    assert held is not None
    assert_close(held.numpy(), want, dtype="float32", reduce=64, scale=1.0)
    np.testing.assert_array_equal(p.numpy(), held.numpy().astype(p.dtype))
    assert optimizer.count.tolist() == [4]


def test_a_rate_that_changes(rng):
    p, g = Tensor(np.zeros(3, "f4"), backend="numpy", requires_grad=True), np.ones(3, "f4")
    optimizer = train.SGD([p], 1.0)
    for lr in (1.0, 0.5, 0.25):
        optimizer.lr = lr
        p.grad = Tensor(g, backend="numpy")
        optimizer.step()
    assert p.tolist() == [-1.75] * 3 and optimizer.lr == 0.25


def test_what_has_no_gradient_stays(rng):
    a, b = (Tensor(normal(rng, (3,)), backend="numpy", requires_grad=True) for _ in range(2))
    optimizer, before = train.AdamW([a, b], 0.1), b.numpy().copy()
    a.grad = Tensor(np.ones(3, "f4"), backend="numpy")
    optimizer.step()
    np.testing.assert_array_equal(b.numpy(), before)
    optimizer.zero_grad()
    assert a.grad is None


def test_clip(backend, rng):
    arrays = [normal(rng, (4, 3)), normal(rng, (5,), "bfloat16")]
    params = tensors(backend, *arrays)
    norm = np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))
    for most in (norm / 3, norm * 2):
        for p, a in zip(params, arrays, strict=True):
            p.grad = Tensor(a, backend=backend)
        got = train.clip_grad_norm([*params, Tensor([1.0], backend=backend)], float(most))
        assert got.item() == pytest.approx(norm, rel=1e-3)
        factor = min(1, most / norm)
        for p, a in zip(params, arrays, strict=True):
            want = a.astype(np.float64) * factor
            assert_close(p.grad.numpy(), want, dtype=str(p.dtype), reduce=1, scale=1.0)


def test_one_gradient_of_two_parameters_is_clipped_once_for_each():
    a, b = (Tensor(np.zeros(4, "f4"), backend="numpy", requires_grad=True) for _ in range(2))
    ((a + b) * 10).sum().backward()
    train.clip_grad_norm([a, b], 1.0)
    total = np.sqrt((a.grad.numpy() ** 2).sum() + (b.grad.numpy() ** 2).sum())
    assert total == pytest.approx(1, rel=1e-5)


def test_refuses():
    frozen = Tensor(np.ones(3, "f4"), backend="numpy")
    with refused(OptionError, "AdamW", "trainable=True"):
        train.AdamW([frozen])
    mapped = np.ones(3, "f4")
    mapped.flags.writeable = False
    with refused(OptionError, "SGD", "view of its file", "trainable=True"):
        train.SGD([Tensor(mapped, backend="numpy", requires_grad=True)])


@pytest.mark.parametrize("kind", [train.AdamW, train.SGD, train.Lion, train.Muon, train.AdamW8bit])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_move_nothing(kind, bad, backend, rng):
    p = Tensor(rng.standard_normal((3, 5)), "float32", backend, requires_grad=True)
    q = Tensor(rng.standard_normal(4), "float32", backend, requires_grad=True)
    optimizer, before = kind([p, q], lr=0.1), [p.numpy().copy(), q.numpy().copy()]
    for value in (bad, 1.0):
        p.grad = Tensor(np.full((3, 5), 2.0), "float32", backend)
        q.grad = Tensor(np.array([1, value, 1, 1]), "float32", backend)
        optimizer.step(train.clip_grad_norm([p, q], 1.0))
        same = [np.array_equal(t.numpy(), then) for t, then in zip((p, q), before, strict=True)]
        assert same == [value is bad] * 2
        assert np.isfinite(p.numpy()).all() and np.isfinite(q.numpy()).all()
