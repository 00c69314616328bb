"""Threads that share a backend: a capture records its own thread alone, and all get their own."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest

from boostr import Tensor, backends
from boostr.ops import core, softmax
from boostr.program import capture

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def other():
    """Another thread, for work in the middle of what this one does."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda fn: pool.submit(fn).result()


def test_what_another_thread_does_is_not_recorded(plain_backend, other):
    x, y = (Tensor(VALUES + i, backend=plain_backend) for i in range(2))
    counter = Tensor(np.int32([0]), backend=plain_backend)
    read = []

    def beside():
        counter.assign(counter + 1)
        read.append(softmax(y * 2).numpy().copy())

    def step():
        early = x + 1
        other(beside)
        return early * 3

    program = capture(step, plain_backend)
    assert program.calls() == capture(lambda: (x + 1) * 3, plain_backend).calls()
    x.assign(VALUES * 5)
    np.testing.assert_array_equal(program.run().numpy(), (VALUES * 5 + 1) * 3)
    assert counter.item() == 1
    np.testing.assert_array_equal(read[0], softmax(y * 2).numpy())


def test_a_capture_within_the_time_of_another(plain_backend, other):
    x, y = (Tensor(VALUES + i, backend=plain_backend) for i in range(2))
    programs = []

    def step():
        early = x + 1
        programs.append(other(lambda: capture(lambda: core.exp(y) + y, plain_backend)))
        return early * 3

    programs.append(capture(step, plain_backend))
    x.assign(VALUES * 5)
    y.assign(VALUES / 7)
    second, first = (p.run().numpy() for p in programs)
    np.testing.assert_array_equal(first, (VALUES * 5 + 1) * 3)
    np.testing.assert_allclose(second, np.exp(VALUES / 7) + VALUES / 7, rtol=1e-5)


def test_many_threads_capture_run_and_compute(plain_backend):
    """Each with a counter and matrices of its own: none sees another's."""
    count, rounds = 4, 15
    start = threading.Barrier(count)

    def work(i):
        rng = np.random.default_rng(i)
        a, b = (rng.integers(-3, 4, (5 + i, 5 + i)).astype(np.float32) for _ in range(2))
        x, w = (Tensor(v, backend=plain_backend) for v in (a, b))
        total = Tensor(np.zeros_like(a), backend=plain_backend)

        def step():
            total.assign(total + x @ w)
            return total * 2

        start.wait()
        for run in range(rounds):
            if run % 5 == 0:
                total.assign(np.zeros_like(a))
                program = capture(step, plain_backend)
            else:
                program.run()
            beside = (x @ w - x).numpy()
            np.testing.assert_array_equal(beside, a @ b - a)
            expected = (run % 5 + 1) * (a @ b) * 2
            np.testing.assert_array_equal(program.outputs.numpy(), expected)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def test_no_program_comes_between_the_kernels_of_a_product(plain_backend):
    """Both are products of a shape whose sums may go through memory that all products share."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, 33, 33)).astype(np.float32)
    x, y = (Tensor(v, backend=plain_backend) for v in (a, b))
    program, over = capture(lambda: x @ x, plain_backend), threading.Event()

    def replay():
        while not over.is_set():
            for _ in range(20):
                program.run()
            plain_backend.synchronize()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    runner = threading.Thread(target=replay)
    runner.start()
    try:
        for _ in range(400):
            np.testing.assert_array_equal((x @ y).numpy(), a @ b)
    finally:
        over.set()
        runner.join()
        sys.setswitchinterval(interval)


def test_a_backend_is_opened_once(monkeypatch):
    opened = []

    def open_backend(selector: str) -> object:
        opened.append(selector)
        time.sleep(0.05)  # the others ask meanwhile
        return object()

    module = ModuleType("slow_backend")
    module.open_backend = open_backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backends, "_MODULES", {"slow": module.__name__})
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(backends.get, ["slow:1"] * 4))
    assert opened == ["1"] and len(found) == 1
