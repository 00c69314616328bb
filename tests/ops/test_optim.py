"""AdamW and gradient norms against the oracle, on every backend."""

import math

import numpy as np
import pytest
from draws import normal, refused, strided, tensors
from oracles_optim import adamw as oracle
from tolerance import EPS, assert_close

from boostr import Tensor, dtypes
from boostr.errors import BackendError, DTypeError, OptionError, ShapeError
from boostr.ops.optim import adamw, adamw_step, clip_scale, global_norm
from boostr.program import capture

SHAPES = [(), (1,), (7,), (3, 5), (64,), (129, 17), (0, 4)]
OPTIONS = {"lr": 3e-3, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}


def state(backend, rng, shape, dtype):
    """(param, grad, m, v) as numpy arrays, m and v as after some steps."""
    wide = "float64" if dtype == "float64" else "float32"
    x = normal(rng, shape, dtype), normal(rng, shape, dtype), normal(rng, shape, wide, 0.3)
    return (*x, np.abs(normal(rng, shape, wide)) ** 2)


def check(got, want, dtype):
    """Parameters of dtype `dtype`, moments: each a sum of two terms of size 1."""
    wide = "float64" if dtype == "float64" else "float32"
    for a, b, kind in zip(got, want, (dtype, wide, wide), strict=True):
        assert_close(a.numpy(), b, dtype=kind, reduce=2)


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_adamw(shape, step, backend, dtype, rng):
    param, grad, m, v = state(backend, rng, shape, dtype)
    want = oracle(param, grad, m, v, step, **OPTIONS)
    p, g, m, v = tensors(backend, param.copy(), grad, m.copy(), v.copy())
    assert adamw(p, g, m, v, step, **OPTIONS) is None
    assert p.dtype == param.dtype
    check((p, m, v), want, dtype)


def test_defaults_and_first_step(backend, rng):
    """From zero moments the first step is lr · sign(grad), whatever the gradient's size."""
    grad = np.array([1e-3, -2, 500, -1e-5], np.float32)
    p, g, m, v = tensors(backend, np.ones(4, np.float32), grad, *np.zeros((2, 4), np.float32))
    adamw(p, g, m, v, 1, lr=0.1)
    want = oracle(np.ones(4), grad, np.zeros(4), np.zeros(4), 1, lr=0.1)[0]
    np.testing.assert_allclose(want, 1 - 0.1 * 0.01 - 0.1 * np.sign(grad), rtol=2e-4)
    assert_close(p.numpy(), want, dtype="float32", reduce=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("grads", ["same", "float32"])
def test_master_copies(grads, dtype, backend, rng):
    """Steps far below the rounding of the parameter add up in its float32 copy."""
    n, steps = 1000, 20
    start = normal(rng, n, dtype)
    master = start.astype(np.float32)
    grad = normal(rng, n, dtype if grads == "same" else grads)
    zeros = np.zeros(n, np.float32)
    p, g, m, v, w = tensors(backend, start.copy(), grad, zeros.copy(), zeros.copy(), master.copy())
    want = master, zeros, zeros
    for step in range(1, steps + 1):
        adamw(p, g, m, v, step, lr=1e-5, master=w)
        want = oracle(want[0], grad, *want[1:], step, lr=1e-5)
    # each step rounds the copy once
    assert_close(w.numpy(), want[0], dtype="float32", reduce=steps)
    np.testing.assert_array_equal(p.numpy(), w.numpy().astype(dtypes.parse(dtype)))
    moved = np.abs(w.numpy() - master)
    assert moved.min() > 1e-4 and moved.max() < EPS[dtype] / 2


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.0])
def test_a_scale_of_zero_makes_all_gradients_zero(bad, on_device, backend, rng):
    """Whatever they hold: so steps that are not finite leave no trace but smaller moments."""
    param, grad, m, v = state(backend, rng, (37,), "float32")
    grad[::3] = bad
    scale = tensors(backend, np.zeros((), np.float32))[0] if on_device else 0.0
    want = oracle(param, np.zeros(37), m, v, 3, **OPTIONS)
    p, g, m, v = tensors(backend, param.copy(), grad, m.copy(), v.copy())
    adamw(p, g, m, v, 3, **OPTIONS, grad_scale=scale)
    check((p, m, v), want, "float32")


def test_many_at_once(backend, rng):
    """More tensors than a launch takes, of mixed dtypes, gradients strided or not."""
    names = ["float32", "bfloat16", "float16"]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(150)]
    made = [state(backend, rng, s, names[i % 3]) for i, s in enumerate(shapes)]
    held = [tensors(backend, p.copy(), g, m.copy(), v.copy()) for p, g, m, v in made]
    for i in range(0, 150, 7):
        if made[i][1].ndim:
            wide = Tensor(np.repeat(made[i][1], 2, -1), backend=backend)
            held[i][1] = wide[..., ::2]
    adamw_step(*map(list, zip(*held, strict=True)), 3, grad_scale=0.5, **OPTIONS)
    for i, (got, start) in enumerate(zip(held, made, strict=True)):
        want = oracle(*start, 3, grad_scale=0.5, **OPTIONS)
        check((got[0], *got[2:]), want, names[i % 3])


def test_scalars_on_the_device_in_a_program(backend, rng):
    """Step, learning rate and gradient scale are read anew by each run."""
    n, rates, scales = 300, [1e-3, 3e-3, 2e-3], [1.0, 0.25, 0.5]
    param, grad, m, v = state(backend, rng, n, "float32")
    want = param, m, v
    held = tensors(backend, param.copy(), grad, m.copy(), v.copy())
    step, lr, scale = tensors(
        backend, np.zeros(1, np.int32), np.zeros((), np.float32), np.zeros(1, np.float32)
    )

    def run():
        step.assign(step + 1)
        adamw(*held, step, lr=lr, grad_scale=scale)

    program = None
    for i, (rate, factor) in enumerate(zip(rates, scales, strict=True)):
        lr.assign(np.array(rate, np.float32))
        scale.assign(np.array([factor], np.float32))
        if program is None:
            program = capture(run, backend)
        else:
            program.run()
        want = oracle(want[0], grad, *want[1:], i + 1, lr=rate, grad_scale=factor)
    check((held[0], *held[2:]), want, "float32")
    assert step.tolist() == [3]


def test_a_parameter_that_requires_a_gradient(backend):
    p = Tensor(np.ones(3, np.float32), backend=backend, requires_grad=True)
    m, v = tensors(backend, *np.zeros((2, 3), np.float32))
    (p * 2).sum().backward()
    adamw(p, p.grad, m, v, 1, lr=0.1, weight_decay=0)
    assert p.node is None and p.requires_grad
    np.testing.assert_allclose(p.numpy(), 0.9, rtol=1e-5)


def test_global_norm(backend, dtype, rng):
    arrays = [normal(rng, s, dtype) for s in [*SHAPES, (300, 41)]]
    held = tensors(backend, *arrays)
    held[3] = Tensor(strided(arrays[3]), backend=backend)
    got = global_norm(held)
    assert got.dtype == dtypes.float32 and got.shape == ()
    want = math.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))
    assert_close(got.numpy(), want, dtype="float32", reduce=1)
    scale = clip_scale(got, want / 4)
    assert_close(scale.numpy(), 0.25, dtype="float32", reduce=1)
    assert clip_scale(got, want * 2).item() == 1


def test_global_norm_of_nothing(backend):
    assert global_norm([Tensor(np.zeros((0, 3), np.float32), backend=backend)]).item() == 0
    with refused(ShapeError, "global_norm", "at least one"):
        global_norm([])
    with refused(DTypeError, "global_norm", "float", "int32"):
        global_norm([Tensor(np.zeros(3, np.int32), backend=backend)])


def test_refuses(rng):
    p, g, m, v = tensors("numpy", *normal(rng, (4, 2, 3)))
    lr = 0.1
    for args, error, words in (
        (([p, p], [g], [m], [v], 1), ShapeError, ("2 params", "1 grads")),
        (([p], [g], [m], [], 1), ShapeError, ("1 params", "0 v")),
        (([p], [g[0]], [m], [v], 1), ShapeError, ("grads[0]", "[2, 3]", "[3]")),
        (([p], [g], [m.to("bf16")], [v], 1), DTypeError, ("m[0]", "float32", "bfloat16")),
        (([p.to("int32")], [g], [m], [v], 1), DTypeError, ("params[0]", "float", "int32")),
        (([p.T], [g.T], [m.T], [v.T], 1), BackendError, ("params[0]", "contiguous")),
        (([p], [g], [m], [v], 0), OptionError, ("step", "0")),
        (([p], [g], [m], [v], p), DTypeError, ("step", "int32", "[2, 3]")),
    ):
        with refused(error, "adamw", *words):
            adamw_step(*args, lr=lr)
    with refused(OptionError, "adamw", "beta2", "1.0"):
        adamw(p, g, m, v, 1, lr=lr, beta2=1.0)
    with refused(DTypeError, "adamw", "lr", "float32", "int32"):
        adamw(p, g, m, v, 1, lr=Tensor(np.ones(1, np.int32), backend="numpy"))
    with refused(DTypeError, "adamw", "masters[0]", "float32", "float16"):
        adamw(p, g, m, v, 1, lr=lr, master=p.to("f16"))
    assert adamw_step([], [], [], [], 1, lr=lr) is None
