"""capture and replay: the same as eager, whatever changes in the tensors between runs."""

import gc
from functools import partial

import numpy as np
import pytest
from draws import normal, refused, tensors

from boostr import Tensor, arange, full, zeros
from boostr.errors import BackendError
from boostr.ops import (
    adamw_step,
    core,
    cross_entropy,
    kv_write,
    linear,
    paged_attention,
    rms_norm,
    rope,
    silu,
    softmax,
    swiglu,
)
from boostr.program import capture


def test_replay_after_assign_equals_eager(backend, rng):
    x, w, g = tensors(backend, normal(rng, (3, 64)), normal(rng, (64, 64)), normal(rng, (64,)))

    def step():
        h = rms_norm(x, g)
        return softmax(swiglu(linear(h, w), h)), core.argmax(h)

    program = capture(step, backend)
    assert len(program) > 0 and len(program.calls()) == len(program)
    for _ in range(3):
        x.assign(normal(rng, (3, 64)))
        got = [t.numpy().copy() for t in program.run()]
        for a, b in zip(got, step(), strict=True):
            np.testing.assert_array_equal(a, b.numpy())


def test_the_capture_itself_runs_once(backend):
    n = Tensor(np.int32([0]), backend=backend)
    calls = []

    def step():
        calls.append(1)
        n.assign(n + 1)
        return n * 10

    program = capture(step, backend)
    assert n.item() == 1 and program.outputs.item() == 10
    assert [program.run().item() for _ in range(3)] == [20, 30, 40]
    assert len(calls) == 1 and n.item() == 4


@pytest.mark.parametrize("make", [full, lambda s, v, d, b: arange(s[0], backend=b) * 0 + v])
def test_what_a_capture_makes_and_writes_starts_anew(make, backend):
    """A buffer made inside is a new one in each run, as it is in eager calls."""
    n = Tensor(np.int32([1]), backend=backend)

    def step():
        total = make((3,), 0, "int32", backend)
        total.assign(total + n)
        total[1:].assign(total[1:] + n)
        return total + 0

    program = capture(step, backend)
    assert program.outputs.tolist() == [1, 2, 2]
    n.assign(np.int32([5]))
    assert program.run().tolist() == [5, 10, 10]
    assert program.run().tolist() == [5, 10, 10]


def test_views_and_copies_replay(backend, rng):
    x = Tensor(normal(rng, (4, 6)), backend=backend)

    def step():
        turned = x.T.reshape(8, 3)  # needs a copy
        return turned, x.reshape(2, 12)[:, ::-1], x[1:, ::2].reshape(9), x.T.contiguous() + 0

    program = capture(step, backend)
    x.assign(normal(rng, (4, 6)))
    for a, b in zip(program.run(), step(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_every_primitive_replays(backend, rng):
    x, i = tensors(backend, normal(rng, (3, 4)), np.int32([2, 0, 2]))
    calls = [
        lambda: core.exp(x), lambda: x + 1, lambda: x > 0, lambda: core.where(x > 0, x, 0),
        lambda: x.to("bf16").to("f32"), lambda: x.sum(1), lambda: x.max(), lambda: core.argmax(x),
        lambda: core.argsort(x), lambda: core.cumsum(x), lambda: x @ x.T, lambda: core.take(x, i),
        lambda: core.take_along(x, core.argsort(x), 1), lambda: core.scatter_add((3, 4), i, x),
        lambda: core.concat([x, x * 2]), lambda: core.bitcast(x * 1, "uint32"),
        lambda: core.erf(x), lambda: core.rsqrt(core.abs(x)), lambda: core.sigmoid(x),
        lambda: core.mean(x),
    ]  # fmt: skip
    programs = [capture(call, backend) for call in calls]
    x.assign(normal(rng, (3, 4)))
    i.assign(np.int32([1, 1, 0]))
    for program, call in zip(programs, calls, strict=True):
        np.testing.assert_array_equal(program.run().numpy(), call().numpy())


def test_a_decode_step_on_a_paged_cache(backend, rng):
    """Positions, lengths, slots and the cache live in tensors: one program serves every step."""
    steps, H, K, D, bs = 6, 4, 2, 8, 2
    tokens = [[normal(rng, (1, n, D)) for n in (H, K, K)] for _ in range(steps)]
    angles = np.arange(8)[:, None] * 0.5 ** np.arange(D // 2)
    tables = tensors(backend, np.cos(angles).astype("f"), np.sin(angles).astype("f"))
    block_table, cu = tensors(backend, np.int32([[3, 0, 2, 1]]), np.int32([0, 1]))

    def fresh():
        caches = [zeros((4, bs, K, D), backend=backend) for _ in range(2)]
        return [*tensors(backend, *(x.copy() for x in tokens[0]), np.int32([0])), *caches]

    def step(q, k, v, position, k_cache, v_cache):
        block = core.take(block_table.flatten(), position // bs)
        kv_write(rope(k, *tables, position), v, k_cache, v_cache, block * bs + position % bs)
        out, _ = paged_attention(
            rope(q, *tables, position), k_cache, v_cache, cu, block_table, position + 1
        )
        position.assign(position + 1)
        return out

    def run(call, state, first):
        results = []
        for qkv in tokens[first:]:
            for held, new in zip(state, qkv, strict=False):
                held.assign(new)
            results.append(call().numpy().copy())
        return results

    state = fresh()
    eager = run(lambda: step(*state), state, 0)
    held = fresh()
    program = capture(lambda: step(*held), backend)
    captured = [program.outputs.numpy().copy(), *run(program.run, held, 1)]
    np.testing.assert_array_equal(captured, eager)


def test_two_programs_do_not_share_results(backend):
    x = Tensor(np.float32([1, 2]), backend=backend)
    first, second = (capture(lambda n=n: x * n, backend) for n in (2, 3))
    a, b = first.run(), second.run()
    assert a.tolist() == [2, 4] and b.tolist() == [3, 6]


def test_captures_record_no_gradient(backend):
    x = Tensor(np.float32([1]), backend=backend, requires_grad=True)
    assert not capture(lambda: x * 2, backend).outputs.requires_grad


def test_a_training_step(backend, rng):
    """Forward, backward and AdamW as one program: as eager steps, whatever the inputs."""
    data = [(normal(rng, (5, 16)), rng.integers(0, 8, 5).astype("i4")) for _ in range(4)]
    weights = [
        normal(rng, (24, 16)),
        normal(rng, (24, 16)),
        normal(rng, (8, 24)),
        normal(rng, (16,)),
    ]

    def trained(run_captured):
        params = tensors(backend, *(w.copy() for w in weights))
        state = [[p.full_like(0) for p in params] for _ in range(2)]
        x, targets = tensors(backend, *(a.copy() for a in data[0]))
        count = Tensor(np.int32([0]), backend=backend)
        for p in params:
            p.requires_grad = True

        def step():
            gate, up, down, scale = params
            h = rms_norm(x, scale)
            hidden = swiglu(linear(h, gate), linear(h, up))
            loss = cross_entropy(linear(hidden, down), targets)
            loss.backward()
            grads = [p.grad for p in params]
            for p in params:
                p.grad = None
            count.assign(count + 1)
            adamw_step(params, grads, *state, count, lr=0.1)
            return loss.detach()

        losses, call = [], step
        for new in data:
            for held, values in zip((x, targets), new, strict=True):
                held.assign(values)
            if run_captured and call is step:
                program = capture(step, backend, grad=True)
                losses.append(program.outputs.numpy().copy())
                call = program.run
            else:
                losses.append(call().numpy().copy())
        return losses, [p.numpy().copy() for p in params]

    eager, captured = trained(False), trained(True)
    np.testing.assert_array_equal(captured[0], eager[0])
    for a, b in zip(captured[1], eager[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_refuses(backend):
    x = zeros(2, backend=backend)
    with refused(BackendError, "capture", "read on the host"):
        capture(lambda: x.item() if x.size == 1 else x.sum().item(), backend)
    with refused(BackendError, "capture", "nested"):
        capture(lambda: capture(lambda: x * 2, backend), backend)
    assert capture(lambda: x + 1, backend).run().tolist() == [1, 1]  # a failed one leaves no trace


def test_programs_that_share_memory(backend, rng):
    """Each is right in every order of runs, and the second takes hardly any memory of its own."""
    x, weights = Tensor(normal(rng, (40, 64)), backend=backend), normal(rng, (64, 64))
    w = Tensor(weights, backend=backend)

    def step(rows):
        def run():
            y = linear(x[:rows], w)
            return linear(silu(y), w) + y

        return run

    arena, eager = backend.new_arena(), [step(n)().numpy().copy() for n in (40, 33, 40)]
    programs, sizes = [], []
    for n in (40, 33, 40):
        programs.append(capture(step(n), backend, arena=arena))
        np.testing.assert_array_equal(programs[-1].outputs.numpy(), eager[len(programs) - 1])
        sizes.append(arena.nbytes)
    assert sizes[0] > 0 and sizes[0] == sizes[2] <= sizes[1]
    for index in (0, 2, 1, 0, 1, 1, 2):
        np.testing.assert_array_equal(programs[index].run().numpy(), eager[index])
    del programs[0]
    np.testing.assert_array_equal(programs[0].run().numpy(), eager[1])


def test_what_shares_memory_reads_nothing_of_each_other(backend):
    if backend.name == "cupy":
        pytest.skip("a graph does not say whose memory it reads")
    x = Tensor(np.ones(8, np.float32), backend=backend)
    arena = backend.new_arena()
    first = capture(lambda: silu(x), backend, arena=arena)

    def reads(y):
        own = x * 2  # where y lies
        return silu(y) + own

    with refused(BackendError, "another program of the same arena"):
        capture(partial(reads, first.outputs), backend, arena=arena)
    second = capture(partial(silu, first.outputs), backend)  # keeps what it reads
    want = second.outputs.tolist()
    del first
    gc.collect()
    hold = [capture(lambda: silu(x) * 3, backend) for _ in range(3)]
    assert second.run().tolist() == want and hold
