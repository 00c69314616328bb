"""Programs on the wgpu backend: memory that they give back, runs encoded ahead."""

import gc
import importlib.util

import numpy as np
import pytest
from conftest import open_backend

from boostr import Tensor, capture, env
from boostr.backends.wgpu.runtime import replay


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
    monkeypatch.setattr(replay, "_FIRST", 2)
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
