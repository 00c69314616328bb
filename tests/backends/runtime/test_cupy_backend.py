"""The cupy backend below its ops: refusals without a GPU; launches and memory on one."""

import ctypes

import numpy as np
import pytest
from conftest import open_backend
from draws import refused

import boostr
from boostr import Tensor, backends, dtypes
from boostr.backends import cupy as package
from boostr.backends.cupy.runtime import driver
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
    from boostr.backends.cupy.rows import norm

    return dict(norm.VARIANTS[0].defines)


def test_fp8_is_refused(gpu):
    with refused(DTypeError, "cupy:0", "float8"):
        Tensor(np.zeros(2, dtypes.float8_e4m3), backend=gpu)


def test_out_of_memory_says_how_much_and_gives_back(gpu):
    import cupy

    pool = cupy.get_default_memory_pool()  # of this process alone, unlike memGetInfo
    spare = boostr.zeros((1 << 24,), backend=gpu)
    nbytes = spare.nbytes
    del spare
    assert pool.free_bytes() >= nbytes
    with refused(OutOfMemoryError, "cupy:0 is out of memory", "1,099,511,627,776 bytes", "free"):
        boostr.zeros((1 << 30, 1 << 8), backend=gpu)
    assert pool.free_bytes() < nbytes
