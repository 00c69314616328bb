"""boostr doctor: a line for each check, real computations, exit code 1 on a failure."""

import importlib.util
import json

import numpy as np
import pytest

from boostr import backends, dispatch, env
from boostr.cli import arithmetic, checks


def report(result) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_machine_that_is_well(boostr) -> None:
    result = boostr("doctor", "--backend", "numpy", "--json")
    done = report(result)
    assert result.exit_code == 0 and json.loads(result.stdout)["ok"]
    assert {"boostr", "packages", "cpu", "memory", "cache", "hub", "numpy"} <= set(done)
    for title in ("matmul", "int8 linear", "attention", "weights"):
        check = done[f"numpy {title}"]
        assert check["status"] == "PASS" and "largest error" in check["detail"]
    assert "offline" in done["hub"]["detail"]


def test_lines_for_people(boostr) -> None:
    lines = boostr("doctor").stdout.splitlines()
    assert all(line.split()[0] in ("PASS", "WARN", "SKIP") for line in lines[:-1])
    assert lines[-1].startswith(f"{sum(line.startswith('PASS') for line in lines)} PASS")


def test_every_backend_is_named(boostr) -> None:
    done = report(boostr("doctor", "--json"))
    for name, reason in backends.available().items():
        assert done[name]["status"] == ("PASS" if reason is None else "SKIP")


def test_every_adapter_is_listed_and_computes(boostr) -> None:
    from boostr.backends.wgpu.runtime import adapters, provider

    if not provider.installed("wgpu"):
        pytest.skip("wgpu is not installed")
    found = adapters.ranked(provider.load("wgpu"))
    done = report(boostr("doctor", "--json"))
    for i, adapter in enumerate(found):
        check = done[f"wgpu adapter {i}"]
        assert check["status"] == "PASS" and adapters.describe(adapter) in check["detail"]
        assert "bindings" in check["detail"] and adapter.info["description"] in check["detail"]


def test_without_vulkan_it_says_what_to_install(boostr, monkeypatch: pytest.MonkeyPatch) -> None:
    from boostr.backends.wgpu.runtime import adapters, provider

    if not provider.installed("wgpu"):
        pytest.skip("wgpu is not installed")
    monkeypatch.setattr(adapters, "ranked", lambda library: [])
    monkeypatch.setattr("platform.system", lambda: "Windows")
    done = report(boostr("doctor", "--json"))
    assert done["wgpu"]["status"] == done["wgpu drivers"]["status"] == "SKIP"
    assert "no GPU answers" in done["wgpu"]["detail"]
    assert "a current driver" in done["wgpu drivers"]["detail"]


def test_composites_are_said_to_be_slow(boostr, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "numba" else real(name, *a)
    )
    kernels = report(boostr("doctor", "--json"))["numpy kernels"]
    assert kernels["status"] == "WARN" and "pip install 'boostr[cpu]'" in kernels["detail"]
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv(env.JIT.name, "0")
    kernels = report(boostr("doctor", "--json"))["numpy kernels"]
    assert kernels["status"] == "WARN" and "BOOSTR_JIT=0" in kernels["detail"]


def test_whether_a_kernel_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.get("numpy")
    monkeypatch.setattr(backend, "kernel", lambda op: "the test wants composites")
    found = {title: detail for title, _, detail in arithmetic.check_arithmetic(backend)}
    assert "composite" in found["attention"] and "composite" in found["int8 linear"]
    assert not dispatch.is_strict()
    monkeypatch.undo()
    real = backend.kernel
    monkeypatch.setattr(backend, "kernel", lambda op: "none" if op == "linear" else real(op))
    found = {title: detail for title, _, detail in arithmetic.check_arithmetic(backend)}
    assert "composite: int8-g32-offsets" in found["weights"]  # read back by a kernel all the same


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_a_wrong_result_fails(boostr, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    real = arithmetic._attention

    def check(*args):
        run, truth = real(*args)
        return run, truth + wrong

    monkeypatch.setattr(arithmetic, "_attention", check)
    result = run_to_failure(boostr)
    assert report(result)["numpy attention"]["status"] == "FAIL"


def test_a_check_that_breaks_is_a_failure_and_not_the_end(
    boostr, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError("in the test")

    monkeypatch.setattr(checks, "_memory", broken)
    done = report(run_to_failure(boostr))
    assert done["memory"]["status"] == "FAIL" and done["numpy matmul"]["status"] == "PASS"


def run_to_failure(boostr):
    from click.testing import CliRunner

    from boostr.cli.app import app

    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1 and not json.loads(result.stdout)["ok"]
    return result


def test_a_cache_that_cannot_be_written(boostr, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(env.CACHE.name, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: _refuse())
    assert report(boostr("doctor", "--json"))["cache"]["status"] == "WARN"


def _refuse() -> None:
    raise PermissionError(13, "Permission denied")


def test_a_hub_that_does_not_answer_is_a_warning_within_seconds(
    boostr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checks, "HUB_SECONDS", 0.05)
    import threading

    forever = threading.Event()
    monkeypatch.setattr(checks, "_ask", lambda url, outcome: forever.wait(30))
    hub = report(boostr("doctor", "--json"))["hub"]
    forever.set()
    assert hub["status"] == "WARN" and "no answer in 0.05 s" in hub["detail"]


def test_a_width_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    meaning = arithmetic._meaning
    monkeypatch.setattr(
        arithmetic, "_meaning", lambda w: meaning(w) + (0.01 if w.scheme.bits == 3 else 0)
    )
    title, status, detail = list(arithmetic.check_arithmetic(backends.get("numpy")))[-1]
    assert (title, status) == ("weights", "FAIL") and "int3-g32-offsets" in detail
