"""Programs on a GPU: what a run repeats, whose memory it writes, what reads between runs see."""

import gc

import numpy as np
import pytest
from conftest import open_backend
from draws import refused

import boostr
from boostr import Tensor, capture, ops
from boostr.errors import BackendError


@pytest.fixture(params=("cupy", "wgpu"))
def gpu(request):
    return open_backend(request.param)


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
    gpu.synchronize()
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


def test_a_read_is_of_the_moment_it_was_started(gpu):
    x = Tensor(np.arange(5, dtype=np.int32), backend=gpu)
    reads = []
    for _ in range(4):
        reads.append(gpu.start_read(x.data))
        x.assign(x + 1)
    assert [read().tolist()[0] for read in reads] == [0, 1, 2, 3]
