"""The tape: leaves, sharing, depth, no_grad, kernels without a gradient of their own, gradcheck."""

import gc
import sys
import weakref
from typing import Any

import numpy as np
import oracles_rows
import pytest
from draws import leaves, normal, refused

from boostr import Tensor, autograd, backends, dispatch, dtypes
from boostr.autograd import gradcheck, gradients, no_grad
from boostr.backends import Kernel
from boostr.dispatch import OPS, Op
from boostr.errors import OptionError, ShapeError
from boostr.ops import core, linear, rms_norm
from boostr.ops import norm as norm_ops


def leaf(values) -> Any:
    return leaves("numpy", np.array(values, np.float64))[0]


def test_backward_adds_to_the_leaves():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x * y + x).sum().backward()
    assert x.grad.tolist() == [4, 5] and y.grad.tolist() == [1, 2]
    (x * 2).sum().backward()
    assert x.grad.tolist() == [6, 7]


def test_a_value_used_many_times():
    x = leaf([2.0])
    y = x * x
    (y * y + y).backward()
    assert x.grad.item() == pytest.approx(4 * 8 + 2 * 2)


def test_backward_of_a_leaf_itself():
    x = leaf([2.0])
    x.backward()
    assert x.grad.item() == 1


def test_gradients_leaves_grad_alone():
    x, y, z = leaf([1.0]), leaf([2.0]), leaf([3.0])
    inner = x * y
    got = gradients(inner * y, [x, inner, z])
    assert [None if g is None else g.item() for g in got] == [4, 2, None] and x.grad is None


def test_a_given_gradient():
    x = leaf([1.0, 2.0])
    (x * 3).backward(Tensor(np.array([1.0, -1.0]), backend="numpy"))
    assert x.grad.tolist() == [3, -3]


def test_no_grad_records_nothing():
    x = leaf([1.0])
    with no_grad():
        y = x * 2
    assert not y.requires_grad and (x * 2).requires_grad


def test_integers_carry_no_gradient():
    x = leaf([3.0, 1.0])
    assert not core.argmax(x).requires_grad
    assert not x.to("int32").requires_grad and not (x > 0).requires_grad
    values = core.take(x, core.argsort(x))
    values.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_deep_tapes_do_not_recurse():
    x = leaf([1.0])
    y = x
    for _ in range(5000):
        y = y + 0
    y.backward()
    assert x.grad.item() == 1


# -- memory --------------------------------------------------------------------------------------
@pytest.fixture
def no_collector():
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Alive(list):
    """Weak references to the arrays that primitives make; the length is of those that live."""

    def __len__(self) -> int:
        return sum(reference() is not None for reference in self)


@pytest.fixture
def alive(monkeypatch):
    found, numpy = Alive(), backends.get("numpy")

    def noted(method):
        def call(*args):
            made = method(*args)
            found.append(weakref.ref(made))
            return made

        return call

    for name in ("unary", "binary", "matmul"):
        monkeypatch.setattr(numpy, name, noted(getattr(numpy, name)))
    return found


@pytest.mark.parametrize("backwards", [True, False])
def test_a_tape_is_no_cycle(no_collector, backwards):
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    h = core.exp(x @ x)
    y = h.sum()
    held = [weakref.ref(y), weakref.ref(h.data)]
    if backwards:
        y.backward()
    del y, h
    assert [h() for h in held] == [None, None]


def test_steps_leave_nothing(no_collector, alive):
    """30 steps of a small network hold as much as one, without the cycle collector."""
    x, w = leaf(np.ones((4, 4))), leaf(np.eye(4))
    counts = []
    for _ in range(30):
        (core.tanh(x @ w) * x).sum().backward()
        x.grad = w.grad = None
        counts.append(len(alive))
    assert counts == [counts[0]] * 30


def test_backward_frees_what_it_has_used(alive):
    seen = []

    def watched(g, y, x):
        seen.append(len(alive))
        return (g + 0,)

    watch = Op("test_watch", lambda x: x.detach() + 0, vjp=watched, saves=())
    del OPS["test_watch"]
    x = leaf(np.ones(3))
    y = x
    for _ in range(10):
        y = core.exp(watch(y))
    y = y.sum()
    y.backward()
    assert len(seen) == 10 and seen[-1] <= seen[0] - 9


def test_only_what_a_gradient_reads_is_kept(alive):
    x, frozen = leaf(np.ones((3, 3))), Tensor(np.ones((3, 3)), backend="numpy")
    y = x + 0
    for _ in range(10):
        y = (y + 1) @ frozen  # whose gradient reads `frozen` alone
    assert len(alive) == 1
    y = core.exp(y)  # reads its result
    y = (y * 2).sum()
    assert len(alive) == 1


def test_a_second_backward_needs_retain():
    x = leaf([3.0])
    y = x * x
    y.backward(retain=True)
    y.backward()
    assert x.grad.item() == 12
    with refused(OptionError, "backward", "mul", "retain=True"):
        y.backward()
    inner = core.exp(x)
    gradients(inner * 2, [x])
    with refused(OptionError, "backward", "exp", "retain=True"):
        (inner * 3).backward()


def test_writing_what_a_gradient_reads_is_an_error():
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = (x * w).sum()
    w.assign(np.array([5.0, 6.0]))
    with refused(OptionError, "backward", "float64[2]", "mul", "written in place"):
        y.backward()
    for view in (w.reshape(2, 1).T, w[1:], w.detach()):
        y = (x * w).sum()
        view.assign(view.numpy() + 1)
        with refused(OptionError, "backward", "written in place"):
            y.backward()
    y = core.exp(x * 2)
    y.assign(y.numpy())
    with refused(OptionError, "backward", "exp", "written in place"):
        y.sum().backward()


def test_what_no_gradient_reads_may_be_written():
    x = leaf([1.0, 2.0])
    y = (x + 1).sum()
    x.assign(np.array([5.0, 6.0]))
    y.backward()
    assert x.grad.tolist() == [1, 1]


def test_very_deep_tapes_are_freed():
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = y + 0
    del y


def test_lists_of_tensors():
    x, y = leaf([1.0]), leaf([2.0])
    core.concat([x, y, x]).sum().backward()
    assert x.grad.item() == 2 and y.grad.item() == 1


def test_gradient_keeps_the_dtype_of_its_tensor(plain_backend):
    x = Tensor(np.ones((2, 4), dtypes.bfloat16), backend=plain_backend, requires_grad=True)
    w = Tensor(np.ones(4, np.float32), backend=plain_backend, requires_grad=True)
    (rms_norm(x, w).to("float32") * w).sum().backward()
    assert x.grad.dtype == dtypes.bfloat16 and w.grad.dtype == dtypes.float32


def test_sixteen_bit_gradients_add_up_in_float32(plain_backend, rng):
    """Of 64 small ones behind a large one, none is lost."""
    x = Tensor(np.ones(4, dtypes.bfloat16), backend=plain_backend, requires_grad=True)
    parts = [np.float32(256), *np.full(64, np.float32(0.5))]
    for part in parts:
        (x * float(part)).backward(Tensor(np.ones(4, dtypes.bfloat16), backend=plain_backend))
    assert x.grad.dtype == dtypes.float32 and x.grad.tolist() == [256 + 32] * 4


# -- kernels -------------------------------------------------------------------------------------
@pytest.fixture
def op_with_kernel(monkeypatch):
    """An op of two outputs without a vjp, served by a "kernel" that records nothing."""
    numpy = backends.get("numpy")

    def composite(a, b, many):
        return a * b + many[0], b * 3

    op = Op("test_op", composite)
    kernel, found = Kernel(run=lambda *args: composite(*args)), numpy.kernel
    monkeypatch.setattr(numpy, "kernel", lambda n: kernel if n == "test_op" else found(n))
    yield op
    del OPS["test_op"]


def test_a_kernel_without_vjp_uses_its_composite(op_with_kernel, rng):
    a, b, c = leaves("numpy", *(normal(rng, (3,)) for _ in range(3)))
    first, second = op_with_kernel(a, b, [c])
    assert first.node.op is op_with_kernel
    (first * second).sum().backward()
    gradcheck(lambda a, b, c: op_with_kernel(a, b, [c])[0], [a, b, c])
    gradcheck(lambda a, b, c: op_with_kernel(a, b, [c])[1], [a, b, c])


def test_one_tensor_given_twice_counts_twice_and_not_four_times(op_with_kernel):
    x = leaf([3.0])
    op_with_kernel(x, x, [x])[0].backward()
    assert x.grad.item() == 2 * 3 + 1


def test_unused_outputs_are_none(op_with_kernel):
    a, b, c = leaf([1.0]), leaf([2.0]), leaf([3.0])
    op_with_kernel(a, b, [c])[1].backward()
    assert b.grad.item() == 3 and a.grad is None


# -- gradcheck -----------------------------------------------------------------------------------
def test_gradcheck_finds_a_wrong_gradient():
    wrong = Op("test_wrong", lambda x: x * x, vjp=lambda g, y, x: (g * x,))
    del OPS["test_wrong"]
    with pytest.raises(AssertionError):
        gradcheck(wrong, [leaf([1.0, 2.0])])
    gradcheck(lambda x: x * x, [leaf([1.0, 2.0])])


def test_gradcheck_leaves_its_inputs_as_they_were(rng):
    x, w = leaves("numpy", normal(rng, (2, 3)), normal(rng, (4, 3)))
    before = x.numpy().copy()
    gradcheck(linear, [x, w])
    np.testing.assert_array_equal(x.numpy(), before)
    assert x.grad is None


def test_refuses():
    x = leaf([1.0, 2.0])
    with refused(ShapeError, "backward", "(2,)", "scalar"):
        (x * 2).backward()
    with refused(ShapeError, "backward", "(2,)", "(1,)"):
        (x * 2).backward(Tensor(np.ones(1), backend="numpy"))
    with refused(OptionError, "backward", "requires a gradient"):
        autograd.backward(x.detach())
    with refused(OptionError, "gradcheck", "float64", "float32"):
        gradcheck(lambda x: x * 2, [Tensor([1.0], backend="numpy", requires_grad=True)])


@pytest.fixture
def added_to(monkeypatch) -> list[Tensor | None]:
    """What each gradient of a product's input was to be added to."""
    module, seen = sys.modules["boostr.ops.linear"], []
    known = module.linear_input_gradient
    monkeypatch.setattr(
        module, "linear_input_gradient", lambda *args: seen.append(args[3]) or known(*args)
    )
    return seen


def test_products_add_to_gradients_that_nobody_shares(plain_backend, rng, added_to):
    """Of what several products read; a gradient that was given, or goes to two places, stays."""
    values = [rng.standard_normal(shape) for shape in ((5, 4), (4, 4), (4, 4), (4, 4), (5, 4))]
    x, a, b, c, g = (Tensor(v.astype(np.float32), backend=plain_backend) for v in values)
    x.requires_grad = True
    h = x * 2.0
    y = linear(h, a, residual=h) + linear(h, b) + linear(h, c)
    (found,) = gradients(y, [x], g)
    np.testing.assert_array_equal(g.numpy(), values[4].astype(np.float32))
    wanted = 2 * values[4] @ (values[1] + values[2] + values[3] + np.eye(4))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert [into is None for into in added_to] == [True, False, False]


def test_products_leave_gradients_that_others_have(plain_backend, rng, added_to):
    """One that was given and is found for their input first; one that is not dense."""
    values = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 4), (4, 4), (4, 4))]
    x, a, g = (Tensor(v, backend=plain_backend) for v in values)
    x.requires_grad = True
    h = x * 2.0
    (found,) = gradients(h + linear(h, a), [x], g)
    np.testing.assert_array_equal(g.numpy(), values[2])
    np.testing.assert_allclose(found.numpy(), 2 * values[2] @ (values[1] + np.eye(4)), 1e-5, 1e-5)
    assert added_to == [None]
    with dispatch.strict(plain_backend.kernel("linear") is not None):
        h = x * 2.0
        (found,) = gradients((h.T + h.T * 2.0).T + linear(h, a) + linear(h, a), [x], g)
    wanted = 2 * values[2] @ (2 * values[1] + 3 * np.eye(4))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_norms_add_the_rest_of_a_gradient(plain_backend, rng, monkeypatch):
    """In their own pass, and leave it as it is: it may be somebody else's."""
    x, w, g = (rng.standard_normal(s).astype(np.float32) for s in ((5, 4), (4,), (5, 4)))
    leaf, weight, given = (Tensor(v, backend=plain_backend) for v in (x, w, g))
    leaf.requires_grad = True
    seen = []
    known = norm_ops._rms_norm_backward
    monkeypatch.setattr(
        norm_ops, "_rms_norm_backward", lambda *args: seen.append(args[1]) or known(*args)
    )
    h = leaf * 2.0
    (found,) = gradients(h + rms_norm(h, weight) + rms_norm(h, weight), [leaf], given)
    np.testing.assert_array_equal(given.numpy(), g)
    own = oracles_rows.rms_norm_backward(g, 2 * x, w)[0]
    np.testing.assert_allclose(found.numpy(), 2 * (g + 2 * own), rtol=1e-4, atol=1e-5)
    assert len(seen) == 2 and all(p is not None for p in seen)


def test_a_rest_that_is_given():
    """`passed` goes to the first input alone, through the norm or beside it."""
    x, w = (Tensor(np.ones(s), backend="numpy", requires_grad=True) for s in ((2, 3), (3,)))
    rest = Tensor(np.full((2, 3), 5.0), backend="numpy")
    for y in (x * w, rms_norm(x, w)):
        one, two = (gradients(y, [x, w], y.full_like(1.0), retain=True, passed=p)
                    for p in (None, rest))  # fmt: skip
        np.testing.assert_allclose(two[0].numpy(), one[0].numpy() + 5.0)
        np.testing.assert_array_equal(two[1].numpy(), one[1].numpy())
    np.testing.assert_array_equal(rest.numpy(), 5.0)
