"""Adapters, memory and commands of the wgpu backend, below its ops."""

import gc
import importlib.util
import sys
import time

import numpy as np
import pytest
from conftest import open_backend
from draws import refused
from strict_wgpu import BARE, strict_wgpu

from boostr import backends, dtypes, env
from boostr.backends import wgpu as package
from boostr.backends.wgpu.runtime import adapters, provider, queue, report
from boostr.backends.wgpu.runtime.array import GpuArray, contiguous_strides
from boostr.backends.wgpu.runtime.buffers import Block
from boostr.errors import BackendError


@pytest.fixture
def gpu():
    return open_backend("wgpu")


def copied(gpu, source, count=None):
    """A copy of whole vectors of words by a kernel."""
    target = gpu.empty(source.shape, source.dtype)
    vectors = source.nbytes // 16 if count is None else count
    params = (vectors, 0, 0)
    gpu.launch("device", "copy", -(-vectors // 256), [source], [target], params, COPY=True)
    return target


class FakeAdapter:
    def __init__(self, name, kind, api="Vulkan"):
        self.info = {"device": name, "description": "", "vendor": "", "adapter_type": kind,
                     "backend_type": api}  # fmt: skip


class FakeProvider:
    def __init__(self, *found):
        self.adapters = lambda: list(found)


SOFTWARE = FakeAdapter("llvmpipe", "CPU")
SMALL = FakeAdapter("Intel UHD", "IntegratedGPU")
LARGE = FakeAdapter("Radeon RX", "DiscreteGPU")
OPENGL = FakeAdapter("Radeon RX", "DiscreteGPU", "OpenGL")


# -- choosing ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("found", "selector", "chosen"),
    [
        ((SOFTWARE, SMALL, OPENGL, LARGE), "", LARGE),
        ((SOFTWARE, SMALL), "", SMALL),
        ((SOFTWARE, SMALL, LARGE), "1", SMALL),
        ((SOFTWARE, SMALL, LARGE), "intel", SMALL),
        ((SOFTWARE, SMALL, LARGE), "llvmpipe", SOFTWARE),
        ((SOFTWARE, SMALL, LARGE), "software", SOFTWARE),
    ],
)
def test_the_best_adapter_or_the_named_one(found, selector, chosen):
    assert adapters.choose(FakeProvider(*found), selector) is chosen


def test_a_software_adapter_is_taken_only_when_named():
    with refused(BackendError, "no GPU answers", "llvmpipe (software, Vulkan)", "only when named"):
        adapters.choose(FakeProvider(SOFTWARE), "")


@pytest.mark.parametrize("selector", ["geforce", "7"])
def test_an_adapter_that_is_not_there_is_named_with_those_that_are(selector):
    with refused(BackendError, f"wgpu:{selector}", "0: Radeon RX", "1: llvmpipe"):
        adapters.choose(FakeProvider(SOFTWARE, LARGE), selector)


def test_a_missing_library_names_the_pip_line(monkeypatch):
    monkeypatch.setenv(env.WGPU.name, "wgpu")
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if "wgpu" in n else real(n))
    assert package.probe() == "wgpu is not installed; pip install 'boostr[wgpu]'"
    with refused(BackendError, "backend wgpu cannot be used", "pip install"):
        package.open_backend("")
    monkeypatch.setenv(env.WGPU.name, "wgpudawn")
    assert "pip install 'boostr[wgpudawn]'" in str(package.probe())


def test_a_library_that_breaks_on_import_is_one_line(monkeypatch):
    monkeypatch.setattr(provider, "load", lambda name: 1 / 0)
    assert "division by zero" in str(package.probe())


@pytest.mark.parametrize(
    ("system", "family", "words"),
    [
        ("Linux", "debian", "apt install libvulkan1"), ("Linux", "ubuntu debian", "ubuntu-drivers"),
        ("Linux", "fedora", "dnf install vulkan-loader"), ("Linux", "nobara fedora", "akmod"),
        ("Linux", "arch", "Vulkan loader"), ("Windows", "", "DirectX 12"), ("Darwin", "", "Metal"),
        ("FreeBSD", "", "Vulkan driver"),
    ],
)  # fmt: skip
def test_what_to_install(system, family, words):
    assert words in report.advice(system, family)


def test_the_report_checks_every_adapter(gpu):
    lines = list(report.check_adapters())
    assert lines and all(status == "PASS" for _, status, _ in lines)
    assert any(gpu.caps.name in detail and "bindings" in detail for _, _, detail in lines)


def test_a_backend_is_opened_once(gpu):
    assert backends.get(gpu.device) is gpu
    with refused(BackendError, "no such adapter"):
        backends.get("wgpu:no such name")


# -- bytes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 1021])
def test_bytes_arrive_and_return(gpu, dtype, n, rng):
    values = rng.integers(0, 2, n).astype(dtypes.parse(dtype))
    got = gpu.to_numpy(gpu.from_numpy(values))
    assert got.dtype == values.dtype and np.array_equal(got, values)


def test_large_arrays_go_in_pieces(gpu, monkeypatch, rng):
    for name in queue._PIECES:
        monkeypatch.setitem(queue._PIECES, name, 1 << 16)
    monkeypatch.setattr(queue, "_READ_PIECE", 1 << 15)
    values = rng.integers(0, 255, (1 << 18) + 3, np.uint8)
    assert np.array_equal(gpu.to_numpy(gpu.from_numpy(values)), values)


def test_an_array_in_a_file_is_read_as_it_lies(gpu, tmp_path, rng):
    values = rng.standard_normal((33, 7)).astype(np.float32)
    values.tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.float32, "r", shape=(33, 7))
    assert np.array_equal(gpu.to_numpy(gpu.from_numpy(mapped)), values)
    assert np.array_equal(gpu.to_numpy(gpu.from_numpy(mapped.T)), values.T)


def test_an_upload_does_not_overtake_commands_that_read_its_memory(gpu):
    """Writes come before all commands that are not submitted: reused memory needs a submit."""
    gpu.synchronize()
    copies = []
    for i in range(8):
        source = gpu.from_numpy(np.full(64, i, np.uint32))
        copies.append(copied(gpu, source))
        del source  # its memory serves the next upload
    assert [int(gpu.to_numpy(c)[0]) for c in copies] == list(range(8))


def test_a_read_is_of_the_moment_it_was_started(gpu):
    values = gpu.empty((64,), np.uint32)
    reads = []
    for i in range(5):
        gpu.launch("device", "fill", 1, [], [values], (16, 0, i), COPY=False)
        reads.append(gpu.start_read(values))
    assert [int(read()[0]) for read in reads] == list(range(5))


def test_reads_that_nobody_waits_for_are_given_up(gpu):
    values = gpu.from_numpy(np.arange(64, dtype=np.uint32))
    for _ in range(20):
        gpu.start_read(values)
    assert len(gpu.queue._staging.abandoned) <= 6
    assert np.array_equal(gpu.start_read(values)(), np.arange(64))
    gpu.release_memory()
    read = gpu.queue.start_read(values.buffer.block, 0, 16)
    read()
    with refused(BackendError, "once"):
        read()


def test_memory_that_dies_in_a_cycle_can_be_used_again(gpu):
    """A collection finalises the whole cycle, but the memory lives on in the pool."""
    for i in range(3):
        cycle = [gpu.from_numpy(np.full(777, i, np.uint32))]
        cycle.append(cycle)
        del cycle
        gc.collect()
    assert (gpu.to_numpy(gpu.from_numpy(np.full(777, 9, np.uint32))) == 9).all()


# -- commands ------------------------------------------------------------------------------------
def test_more_workgroups_than_a_dimension_has_are_folded(gpu, monkeypatch):
    with strict_wgpu(workgroups=3) as gpu:
        source = gpu.from_numpy(np.arange(1 << 13, dtype=np.uint32))
        assert gpu._fold(8) == (3, 3) and gpu._fold(3) == (3, 1)
        assert np.array_equal(gpu.to_numpy(copied(gpu, source)), np.arange(1 << 13))
        with refused(BackendError, "device.fill", "too large"):
            gpu.launch("device", "fill", (4, 1, 1), [], [source], (1, 0, 0), COPY=False)


def test_an_empty_grid_starts_nothing(gpu):
    gpu.launch("device", "no such kernel", (0, 1, 1), [], [], ())


def test_parameters_are_checked_and_come_in_immediates_or_a_uniform(gpu):
    source = gpu.from_numpy(np.arange(64, dtype=np.uint32))
    with refused(BackendError, "device.fill", "[1]", "III"):
        gpu.launch("device", "fill", 1, [], [source], (1,), COPY=False)
    with strict_wgpu(**BARE) as bare:
        source = bare.from_numpy(np.arange(64, dtype=np.uint32))
        assert np.array_equal(bare.to_numpy(copied(bare, source)), np.arange(64))


def test_arrays_that_share_memory_are_refused_where_one_is_written(gpu):
    x = gpu.from_numpy(np.zeros(64, np.uint32))
    other = x.view(shape=(16,), strides=(1,), offset=32)
    with refused(BackendError, "device.copy", "shares memory"):
        gpu.launch("device", "copy", 1, [x], [other], (4, 0, 0), COPY=True)


def test_a_kernel_that_does_not_compile_is_named(gpu):
    with refused(BackendError, "device.nothing", "does not compile"):
        gpu.launch("device", "nothing", 1, [], [gpu.empty((64,))], (1, 0, 0), COPY=False)
    gpu.synchronize()


def test_views_of_arrays_larger_than_a_binding_are_bound_by_windows():
    with strict_wgpu(binding_bytes=4096, poison=False) as gpu:
        values = np.arange(1 << 13, dtype=np.uint32)  # 32 KiB
        whole = gpu.from_numpy(values)
        part = whole.view(shape=(512,), strides=(1,), offset=3 * 512)
        assert gpu.offset(part) == 0
        assert np.array_equal(gpu.to_numpy(copied(gpu, part)), values[3 * 512 : 4 * 512])
        odd = part.view(offset=3 * 512 + 5)
        assert gpu.offset(odd) == 5
        with refused(BackendError, "[8192] (uint32)", "MiB that a kernel can see at once"):
            copied(gpu, whole)


def test_poisoned_memory_is_nan(gpu):
    with strict_wgpu(poison=True, binding_bytes=1024) as gpu:
        assert np.isnan(gpu.to_numpy(gpu.empty((3000,)))).all()


def test_bind_groups_are_found_again_and_forgotten_with_their_memory(gpu):
    gpu.release_memory()
    source = gpu.from_numpy(np.zeros(1 << 19, np.uint32))  # a block of its own size
    target = copied(gpu, source, 1)
    before = len(gpu.groups)
    for _ in range(5):
        params = (1, 0, 0)
        gpu.launch("device", "copy", 1, [source], [target], params, COPY=True)
    assert len(gpu.groups) == before
    del source
    gpu.release_memory()
    assert len(gpu.groups) == before - 1


def test_a_lost_device_is_said_by_every_call_from_then_on(gpu):
    from boostr.backends.wgpu.backend import WgpuBackend

    library = gpu.provider
    adapter = next(a for a in adapters.ranked(library) if adapters.name(a) == gpu.caps.name)
    other = WgpuBackend(library, adapter, "other")
    values = other.from_numpy(np.zeros(64, np.uint32))
    other.synchronize()
    other._gpu.destroy()
    for call in (
        lambda: (copied(other, values), other.flush()), lambda: other.to_numpy(values),
        lambda: other.start_read(values), lambda: other.from_numpy(np.zeros(64, np.uint32)),
    ):  # fmt: skip
        with refused(BackendError, "the GPU was lost", "open the program again"):
            call()
    assert gpu.to_numpy(gpu.from_numpy(np.ones(3, np.uint8))).tolist() == [1, 1, 1]


def test_time_is_measured(gpu):
    source = gpu.from_numpy(np.zeros(1 << 12, np.uint32))
    _, program = gpu.capture(lambda: copied(gpu, source))
    started = time.perf_counter()
    assert 0 < program.seconds() < time.perf_counter() - started
    assert gpu.memory_bandwidth() > 1e6


def test_debug_prints_time_and_grid_of_each_kernel(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "_debug", 3)
    copied(gpu, gpu.from_numpy(np.zeros(64, np.uint32)))
    assert "device.copy" in (text := capsys.readouterr().err)
    assert " us, " in text and "grid (1, 1, 1)" in text


def test_strides_and_spans():
    block = Block(type("Gpu", (), {"_internal": None})(), 1024, None)
    x = GpuArray(type("B", (), {"block": block})(), (3, 4), dtypes.float32, (8, -1), 3)  # type: ignore[arg-type]
    assert x.size == 12 and x.nbytes == 48 and not x.contiguous and x.span == (0, 20)
    assert contiguous_strides((2, 0, 3)) == (3, 3, 1)
    assert x.view(shape=(1, 1), strides=(99, 99)).contiguous


@pytest.mark.skipif(sys.platform == "emscripten", reason="no processes")
def test_the_other_library_computes_the_same(gpu, monkeypatch):
    if not provider.installed("wgpudawn") or env.WGPU.text() == "wgpudawn":
        pytest.skip("wgpudawn is not installed or is being tested")
    library = provider.load("wgpudawn")
    found = adapters.ranked(library)
    if not found:
        pytest.skip("wgpudawn finds no adapter")
    from boostr.backends.wgpu.backend import WgpuBackend

    other = WgpuBackend(library, found[0], "dawn")
    source = other.from_numpy(np.arange(4096, dtype=np.uint32))
    _, program = other.capture(lambda: None)
    assert len(program) == 0
    out, program = other.capture(lambda: copied(other, source))
    reads = [other.start_read(out)]
    program.run()
    reads.append(other.start_read(out))
    assert all(np.array_equal(read(), np.arange(4096)) for read in reads)
    with refused(BackendError, "device.nothing", "does not compile"):
        other.launch("device", "nothing", 1, [], [source], (1, 0, 0), COPY=False)
