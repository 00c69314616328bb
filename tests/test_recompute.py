"""checkpoint: the same gradients, of what is computed twice."""

import gc
import weakref

import numpy as np
import pytest
from draws import leaves, normal

from boostr import Tensor, no_grad, ops
from boostr.autograd import gradcheck
from boostr.errors import OptionError
from boostr.ops import core
from boostr.recompute import checkpoint


def test_gradients_of_inputs_and_weights(rng):
    x, y, w, unused = leaves("numpy", *(normal(rng, (3, 3)) for _ in range(4)))

    def part(x, y):
        return core.tanh(x @ w) * y + x

    gradcheck(lambda x, y, w: checkpoint(part, x, y) @ w, [x, y, w])
    inner = x * 2
    (checkpoint(part, inner, y).sum() + (inner @ unused).sum()).backward()
    got = [t.grad.numpy() for t in (x, y, w, unused)]
    for t in (x, y, w, unused):
        t.grad = None
    inner = x * 2
    (part(inner, y).sum() + (inner @ unused).sum()).backward()
    for a, t in zip(got, (x, y, w, unused), strict=True):
        np.testing.assert_array_equal(a, t.grad.numpy())


def test_inner_results_are_not_kept(rng):
    (x,) = leaves("numpy", normal(rng, (4, 4)))
    made = []

    def part(x):
        h = core.exp(x)
        made.append(weakref.ref(h.data))
        return h * h

    gc.disable()
    try:
        y = checkpoint(part, x)
        assert made[0]() is None
        y.sum().backward()
    finally:
        gc.enable()
    assert len(made) == 2 and made[1]() is None
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp(2 * x.numpy()))


def test_without_gradients_it_is_the_function(rng):
    calls, x = [], Tensor(normal(rng, (2,)), backend="numpy")
    y = checkpoint(lambda x: calls.append(1) or x * 2, x)
    assert not y.requires_grad and calls == [1]
    x.requires_grad = True
    with no_grad():
        assert not checkpoint(lambda x: x * 2, x).requires_grad


def test_frozen_inputs(rng):
    x, w = (
        Tensor(normal(rng, (2, 3)), backend="numpy"),
        Tensor(normal(rng, (4, 3)), backend="numpy"),
    )
    w.requires_grad = True
    checkpoint(lambda x: ops.linear(x, w), x).sum().backward()
    assert x.grad is None
    np.testing.assert_allclose(w.grad.numpy(), np.tile(x.numpy().sum(0), (4, 1)), rtol=1e-6)


def test_parts_that_know_a_tensor_of_the_tape(rng):
    x, y = leaves("numpy", *(normal(rng, (3,)) for _ in range(2)))

    def whole(x, y):
        shared = core.exp(y)
        for _ in range(2):
            x = checkpoint(lambda x: core.tanh(x * shared), x)
        return x

    gradcheck(whole, [x, y])


def test_a_weight_that_is_written_before_backward_is_an_error(rng):
    x, w = leaves("numpy", *(normal(rng, (3,)) for _ in range(2)))
    y = checkpoint(lambda x: x * w, x).sum()
    w.assign(w.numpy() * 2)
    with pytest.raises(OptionError, match="gradient of checkpoint reads, was written in place"):
        y.backward()


def test_nested(rng):
    (x,) = leaves("numpy", normal(rng, (3,)))
    gradcheck(lambda x: checkpoint(lambda h: checkpoint(core.exp, h * 2) + h, x), [x])
