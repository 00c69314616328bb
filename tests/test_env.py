"""Environment variables: one table, read when used, refused by name."""

import re
from pathlib import Path

import pytest
from draws import refused

from boostr import backends, env
from boostr.errors import BackendError, OptionError

ROOT = Path(__file__).parents[1]


def test_every_variable_is_declared_and_none_twice():
    declared = [v.name for v in env.VARIABLES]
    assert len(set(declared)) == len(declared)
    used = set()
    for path in (ROOT / "boostr").rglob("*.py"):
        used |= set(re.findall(r"\bBOOSTR_[A-Z_]+", path.read_text()))
    assert used <= set(declared)
    assert all(v.help for v in env.VARIABLES)


def test_only_env_reads_the_environment():
    for path in (ROOT / "boostr").rglob("*.py"):
        if path.name != "env.py":
            read = re.findall(r"environ(?:\.get\(|\[)\s*[\"']BOOSTR", path.read_text())
            assert not read, f"{path} reads a variable of boostr itself"


def test_default_and_value(monkeypatch):
    monkeypatch.delenv("BOOSTR_DEBUG", raising=False)
    assert env.DEBUG.text() == "0" and env.DEBUG.integer() == 0
    monkeypatch.setenv("BOOSTR_DEBUG", "2")
    assert env.DEBUG.integer() == 2
    monkeypatch.setenv("BOOSTR_DEBUG", "loud")
    with refused(OptionError, "BOOSTR_DEBUG", "whole number", "'loud'"):
        env.DEBUG.integer()


def test_num_threads(monkeypatch):
    monkeypatch.setenv("BOOSTR_NUM_THREADS", "3")
    assert env.num_threads() == 3
    monkeypatch.setenv("BOOSTR_NUM_THREADS", "0")
    assert env.num_threads() >= 1
    monkeypatch.setenv("BOOSTR_NUM_THREADS", "-1")
    with refused(OptionError, "BOOSTR_NUM_THREADS", "0 or more", "-1"):
        env.num_threads()


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("BOOSTR_CACHE", str(tmp_path / "c"))
    assert env.cache_dir() == tmp_path / "c" and not (tmp_path / "c").exists()
    monkeypatch.delenv("BOOSTR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert env.cache_dir() == tmp_path / "boostr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert env.cache_dir() == Path.home() / ".cache" / "boostr"


def test_backend_from_the_environment(monkeypatch):
    monkeypatch.setenv("BOOSTR_BACKEND", "numpy")
    assert backends.get().name == "numpy" and backends.get() is backends.get("numpy")
    monkeypatch.setenv("BOOSTR_BACKEND", "nunpy")
    with refused(BackendError, "'nunpy'", "numpy"):
        backends.get()
    assert backends.get("numpy").name == "numpy"  # an argument wins


def test_auto_finds_a_backend_that_answers(monkeypatch):
    monkeypatch.setenv("BOOSTR_BACKEND", "auto")
    assert backends.available()[backends.get().name] is None


@pytest.mark.parametrize("name", backends.names())
def test_available_gives_a_reason_or_none(name):
    reason = backends.available()[name]
    assert reason is None or reason


def test_a_missing_backend_is_a_skip_or_a_failure(monkeypatch):
    """BOOSTR_REQUIRE is what lets continuous integration trust the `backend` fixture."""
    import conftest

    monkeypatch.setattr(conftest, "missing", lambda: {"numpy": "no such device"})
    monkeypatch.setenv("BOOSTR_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match="numpy: no such device"):
        conftest.open_backend("numpy")
    monkeypatch.setenv("BOOSTR_REQUIRE", "wgpu,numpy")
    with pytest.raises(pytest.fail.Exception, match="no such device"):
        conftest.open_backend("numpy")


def test_devices_are_looked_for_once(monkeypatch):
    """Every tensor made without a backend asks for the default."""
    monkeypatch.setenv("BOOSTR_BACKEND", "auto")
    asked, found = [], backends.available()
    monkeypatch.setattr(backends, "_probe", lambda name: asked.append(name) or found[name])
    backends._auto.cache_clear()
    assert backends.get() is backends.get() is backends.get("auto")
    assert len(asked) == len(set(asked)) and asked[-1] == backends.get().name
