"""Programs on the wgpu backend: what a run repeats, whose memory it writes, runs encoded ahead."""

import gc
import importlib.util

import numpy as np
import pytest
from conftest import open_backend
from draws import refused

import boostr
from boostr import Tensor, capture, env, ops
from boostr.backends.wgpu import replay
from boostr.errors import BackendError


@pytest.fixture
def gpu():
    return open_backend("wgpu")


@pytest.fixture
def threaded(gpu, monkeypatch):
    """As on a machine with many cores."""
    if importlib.util.find_spec("llvmlite") is None:
        pytest.skip("runs are encoded ahead with llvmlite")
    monkeypatch.setattr(env, "cores", lambda: 8)
    replay._compiled().result()
    return gpu


def test_a_program_happens_exactly_once_and_then_once_a_run(gpu):
    counter = Tensor([0], backend=gpu)
    x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3), backend=gpu)

    def step():
        counter.assign(counter + 1)
        constant = Tensor(np.array([10], np.int32), backend=gpu)  # uploaded beside the capture
        return ops.core.sum(x * 2, 1), counter + constant

    program = capture(step, gpu)
    assert counter.tolist() == [1]
    assert program.outputs[0].tolist() == [6, 24] and program.outputs[1].tolist() == [11]
    x.assign(x + 1)
    for _ in range(3):
        program.run()
    assert counter.tolist() == [4]
    assert program.outputs[0].tolist() == [12, 30] and program.outputs[1].tolist() == [14]
    assert len(program) == len(program.describe()) > 0


def test_nothing_else_is_given_a_programs_memory(gpu):
    x = Tensor(np.ones(1000, np.float32), backend=gpu)
    program = capture(lambda: ((x + 1) * 3) - 2, gpu)
    others = [boostr.full((1000,), float(i), backend=gpu) for i in range(50)]
    program.run()
    assert all((t.numpy() == i).all() for i, t in enumerate(others))
    assert (program.outputs.numpy() == 4).all()


def test_what_a_program_reads_lives_as_long_as_it_does(gpu):
    def made():
        x = Tensor(np.full(1000, 5, np.float32), backend=gpu)
        return capture(lambda: x + 1, gpu)

    program = made()
    gc.collect()
    others = [Tensor(np.zeros(1000, np.float32), backend=gpu) for _ in range(4)]
    program.run()
    assert (program.outputs.numpy() == 6).all() and len(others) == 4


def test_outputs_outlive_their_program(gpu):
    x = Tensor(np.arange(300, dtype=np.float32), backend=gpu)
    program = capture(lambda: (x + 1) * 2, gpu)
    out = program.outputs
    del program
    gc.collect()
    others = [boostr.full((300,), 7.0, backend=gpu) for _ in range(8)]
    assert np.array_equal(out.numpy(), (np.arange(300) + 1) * 2)
    assert all((t.numpy() == 7).all() for t in others)


def test_a_programs_memory_returns_with_it(gpu):
    gc.collect()
    gpu.release_memory()
    before = gpu.used_memory()

    def made():
        x = Tensor(np.ones(1 << 16, np.float32), backend=gpu)
        return capture(lambda: ((x + 1) * 3, x * 2), gpu)

    program = made()
    assert gpu.used_memory() >= before + 3 * (1 << 18)
    del program
    gpu.release_memory()
    assert gpu.used_memory() == before


def test_a_failed_capture_leaves_the_backend_usable(gpu):
    x = Tensor([1.0], backend=gpu)
    with refused(BackendError, "capture", "read on the host"):
        capture(lambda: (x + 1).numpy(), gpu)
    with refused(BackendError, "nested"):
        capture(lambda: capture(lambda: x + 1, gpu), gpu)
    assert capture(lambda: x + 1, gpu).outputs.tolist() == [2]


def test_an_empty_program_runs(gpu):
    program = capture(lambda: None, gpu)
    assert program.run() is None and len(program) == 0


def test_reads_that_are_late_see_their_own_run(gpu):
    counter = Tensor([0], backend=gpu)
    program = capture(lambda: counter.assign(counter + 1), gpu)
    reads = [gpu.start_read(counter.data)]
    for _ in range(9):
        program.run()
        reads.append(gpu.start_read(counter.data))
    assert [int(read()[0]) for read in reads] == list(range(1, 11))


def test_runs_that_are_encoded_ahead_are_the_same(threaded):
    gpu = threaded
    counter, step = Tensor([0], backend=gpu), Tensor([1], backend=gpu)
    program = capture(lambda: counter.assign(counter + step), gpu)
    expected, reads = 1, []
    for i in range(30):
        if i % 7 == 3:  # commands of others in between keep their place
            step.assign(step + 1)
        expected += 1 + (i + 4) // 7
        program.run()
        reads.append((expected, gpu.start_read(counter.data)))
    assert program._replay is not None and program._replay._store  # type: ignore[attr-defined]
    assert [int(read()[0]) for _, read in reads] == [value for value, _ in reads]
    assert not gpu.provider.problems


def test_the_pieces_of_a_long_run_are_the_same(threaded, monkeypatch):
    gpu = threaded
    monkeypatch.setattr(replay, "_LONG", 8)
    monkeypatch.setattr(replay, "_FIRST", 3)
    x = Tensor([0], backend=gpu)

    def step():
        for i in range(12):
            x.assign(x * 2 + i % 2 if i % 3 else x + 1)

    def expected(value):
        for i in range(12):
            value = np.int32(value * 2 + i % 2 if i % 3 else value + 1)
        return value

    program, value = capture(step, gpu), expected(np.int32(0))
    assert len(program) >= 12
    for _ in range(3):
        program.run()
        with np.errstate(over="ignore"):
            value = expected(value)
        assert x.tolist() == [int(value)]
    assert program._replay is not None  # type: ignore[attr-defined]


def test_what_is_encoded_ahead_dies_with_the_program(threaded):
    gpu = threaded
    gc.collect()
    gpu.release_memory()
    before, objects = gpu.used_memory(), gpu.provider.live_objects()

    def run():
        x = Tensor(np.ones(1 << 18, np.float32), backend=gpu)
        program = capture(lambda: (x + 1) * 3, gpu)
        for _ in range(5):
            program.run()
        assert program._replay._store  # type: ignore[attr-defined]

    run()
    replay.encoders().submit(int).result()
    gpu.release_memory()
    assert gpu.used_memory() == before
    after = gpu.provider.live_objects()
    for kind in {"buffers", "bindGroups", "commandBuffers"} & after.keys():
        assert after[kind] <= objects[kind], kind
