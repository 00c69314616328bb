"""The cupy backend below its ops: refusals without a GPU; launches, programs, memory on one."""

import ctypes

import numpy as np
import pytest
from conftest import open_backend
from draws import refused

import boostr
from boostr import Tensor, backends, capture, dtypes, ops
from boostr.backends import cupy as package
from boostr.backends.cupy import driver
from boostr.errors import BackendError, DTypeError, OutOfMemoryError


@pytest.fixture
def gpu():
    return open_backend("cupy")


# -- without a GPU -------------------------------------------------------------------------------
def test_a_missing_driver_is_one_clear_line(monkeypatch):
    pytest.importorskip("cupy")

    def missing():
        raise BackendError("no NVIDIA driver: libcuda.so.1 was not found")

    monkeypatch.setattr(driver, "library", missing)
    assert package.probe() == "no NVIDIA driver: libcuda.so.1 was not found"
    with refused(BackendError, "backend cupy cannot be used", "no NVIDIA driver"):
        package.open_backend("")


def test_a_missing_cupy_names_the_pip_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'boostr[cuda13]'" in str(package.probe())


@pytest.mark.parametrize(
    ("built", "offered", "words"),
    [(13000, 13000, None), (12000, 13000, None), (13000, 12020, "boostr[cuda12]"),
     (13000, 11080, "update the driver")],
)  # fmt: skip
def test_the_pip_line_for_a_driver_that_is_too_old(built, offered, words, monkeypatch):
    cupy = pytest.importorskip("cupy")
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: built)
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: offered)
    advice = package.mismatch()
    assert advice is None if words is None else words in str(advice)


def test_arguments_lie_as_c_aligns_them():
    class Array:
        class data:  # noqa: N801
            ptr = 0x1122334455667788

    function = driver.Function(ctypes.c_void_p(), "test")
    function.first_offset = 64  # where the driver says that a tensor map begins
    words = ctypes.create_string_buffer(512)
    arguments = [bytes(128), Array(), 7, None, 1.5, np.int64(-1), 2]
    for _ in range(2):  # the second time by the layout of the first
        function.pack_into(words, arguments)

    class Expected(ctypes.Structure):
        _fields_ = [
            ("skipped", ctypes.c_ubyte * 64), ("map", ctypes.c_ubyte * 128),
            ("p", ctypes.c_uint64), ("i", ctypes.c_int),
            ("null", ctypes.c_uint64), ("f", ctypes.c_float), ("q", ctypes.c_int64),
            ("j", ctypes.c_int),
        ]  # fmt: skip

    got = Expected.from_buffer_copy(words)
    assert (got.p, got.i, got.null, got.f, got.q, got.j) == (Array.data.ptr, 7, 0, 1.5, -1, 2)


# -- with one ------------------------------------------------------------------------------------
def test_selectors(gpu):
    assert backends.get("cupy:0").device == gpu.device == "cupy:0"
    with refused(BackendError, "cupy:99", "device(s)"):
        backends.get("cupy:99")
    with refused(BackendError, "index", "'fast'"):
        backends.get("cupy:fast")


def test_a_launch_that_the_driver_refuses_says_what_it_was(gpu):
    x = gpu.empty((1, 8), np.float32)
    with refused(BackendError, "launch", "(4096,)"):
        gpu.launch("norm", "norm_forward", (1,), (4096,), [x], **_any_norm_macros())


def _any_norm_macros():
    from boostr.backends.cupy import norm

    return dict(norm.VARIANTS[0].defines)


def test_fp8_is_refused(gpu):
    with refused(DTypeError, "cupy:0", "float8"):
        Tensor(np.zeros(2, dtypes.float8_e4m3), backend=gpu)


def test_out_of_memory_says_how_much_and_gives_back(gpu):
    import cupy

    before = cupy.cuda.runtime.memGetInfo()[0]
    with refused(OutOfMemoryError, "cupy:0 is out of memory", "1,099,511,627,776 bytes", "free"):
        boostr.zeros((1 << 30, 1 << 8), backend=gpu)
    assert cupy.cuda.runtime.memGetInfo()[0] >= before


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
    assert len(program) > 0


def test_nothing_else_is_given_a_programs_memory(gpu):
    x = Tensor(np.ones(1000, np.float32), backend=gpu)
    program = capture(lambda: ((x + 1) * 3) - 2, gpu)
    others = [boostr.full((1000,), float(i), backend=gpu) for i in range(50)]
    program.run()
    gpu.synchronize()
    assert all((t.numpy() == i).all() for i, t in enumerate(others))
    assert (program.outputs.numpy() == 4).all()


def test_a_failed_capture_leaves_the_backend_usable(gpu):
    x = Tensor([1.0], backend=gpu)
    with refused(BackendError, "capture", "read on the host"):
        capture(lambda: x.numpy(), gpu)
    assert capture(lambda: x + 1, gpu).outputs.tolist() == [2]


def test_a_read_is_of_the_moment_it_was_started(gpu):
    x = Tensor(np.arange(5, dtype=np.int32), backend=gpu)
    reads = []
    for _ in range(4):
        reads.append(gpu.start_read(x.data))
        x.assign(x + 1)
    assert [read().tolist()[0] for read in reads] == [0, 1, 2, 3]
