"""The backends that every op test runs on: each as it is, and each with its composites alone."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import zlib
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import settings

from boostr import Tensor, backends, env
from boostr.errors import BoostrError

COMPOSITE = "-composite"
VARIANTS = [name + suffix for name in backends.names() for suffix in ("", COMPOSITE)]
# BOOSTR_BACKEND=wgpu:NAME says which adapter "wgpu" is in the tests, not what the default is
_ADAPTER = "BOOSTR_TESTED_ADAPTER"
if env.BACKEND.text().startswith("wgpu"):
    os.environ[_ADAPTER] = os.environ.pop(env.BACKEND.name)
os.environ.setdefault(_ADAPTER, "wgpu")  # this module may be imported twice
# llvmpipe compiles for 4 lanes in half of the time, and most of what it does here is to compile
os.environ.setdefault("LP_NATIVE_VECTOR_WIDTH", "128")
FLOATS = ("float64", "float32", "float16", "bfloat16")
settings.register_profile("boostr", deadline=None)  # a busy machine is no failure
settings.load_profile("boostr")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup; tests that interrupt a
    signal.signal(signal.SIGINT, signal.default_int_handler)  # process would hand it on to that


def selector(name: str) -> str:
    """How the tests ask for the backend `name`: with the adapter that they are to run on."""
    return os.environ[_ADAPTER] if name == "wgpu" else name


@cache
def missing() -> dict[str, str]:
    """The backends that cannot run here, and why."""
    return {name: why for name, why in backends.available().items() if why is not None}


def open_backend(name: str) -> backends.Backend:
    """The backend; a visible skip where it is missing, a failure if BOOSTR_REQUIRE names it."""
    if selector(name) != name:
        return backends.get(selector(name))  # one to test, perhaps in software
    reason = missing().get(name)
    if reason is None:
        return backends.get(name)
    if name in env.REQUIRE.text().split(","):
        pytest.fail(f"{env.REQUIRE.name} names {name}, which is missing: {reason}")
    pytest.skip(f"{name}: {reason}")


_lacking: dict[str, dict[str, str]] = {}  # file -> test -> the device that it lacks, and why


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """One visible skip for each file whose tests lack a device; the others count as deselected."""
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
    reason = reason.removeprefix("Skipped: ")
    if not report.skipped or reason not in {f"{n}: {why}" for n, why in missing().items()}:
        return None
    tests = _lacking.setdefault(report.nodeid.partition("::")[0], {})
    tests[report.nodeid] = reason
    return None if report.nodeid == next(iter(tests)) else ("deselected", "", "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests lack which device."""
    reasons = Counter(itertools.chain(*(tests.values() for tests in _lacking.values())))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} tests did not run: {reason}")


def on_hardware(backend: backends.Backend) -> bool:
    """Whether the backend has a real GPU, not one that the processor plays."""
    caps = getattr(backend, "caps", None)
    return caps is not None and getattr(caps, "kind", "") != "software"


def skip_large(request: pytest.FixtureRequest, backend: backends.Backend) -> None:
    """End a test that is marked `rare`, or, on a GPU in software, `large` or, where it is about
    composites, `kernel`: it would take too long. `--large` runs it."""
    if request.config.getoption("--large") or on_hardware(backend):
        return
    software = backend.name != "numpy"
    composite = str(getattr(request, "param", "")).endswith(COMPOSITE)
    for name, why, holds in (
        ("rare", "a kernel more to compile, like others", not composite),
        ("large", "too large for a GPU in software", software),
        ("kernel", "too large for a GPU in software", software and composite),
    ):
        if holds and request.node.get_closest_marker(name):
            pytest.skip(why)


def pytest_collection_finish() -> None:
    """Forty thousand tests are nothing that a collector must look through again and again."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="what takes long without a GPU")
    parser.addoption("--schedules", type=int, default=10, help="of requests that are played")


@pytest.fixture(params=VARIANTS)
def backend(request, monkeypatch) -> backends.Backend:
    """Every backend of the library, with its kernels and (`NAME-composite`) without them."""
    found = open_backend(request.param.removesuffix(COMPOSITE))
    skip_large(request, found)
    if request.param.endswith(COMPOSITE):
        monkeypatch.setattr(found, "kernel", lambda op: "the test wants composites")
    return found


@pytest.fixture(params=list(backends.names()))
def plain_backend(request) -> backends.Backend:
    """Every backend once: for tests that no kernel can change."""
    found = open_backend(request.param)
    skip_large(request, found)
    return found


@pytest.fixture
def backend64(backend) -> backends.Backend:
    """A backend that can hold float64, as gradcheck needs."""
    return holding(backend, "float64")


@pytest.fixture(params=FLOATS)
def dtype(request, backend) -> str:
    """The name of every float dtype that the backend of the test can hold."""
    holding(backend, request.param)
    return request.param


def holding(backend: backends.Backend, name: str) -> backends.Backend:
    """The backend; a visible skip if it holds no arrays of the dtype `name`."""
    try:
        Tensor(np.zeros(1, np.float32), name, backend)
    except BoostrError as error:
        pytest.skip(f"{backend.name} holds no {name}: {error}")
    return backend


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers that are the same for one test on every backend and in every run."""
    return np.random.default_rng(zlib.crc32(request.function.__name__.encode()))
