"""Finding models: paths, references, the cache, the hub."""

import json
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from fake_hub import COMMIT, GGUF, WHOLE, failing, hub_error, reachable, snapshot
from huggingface_hub import constants, errors

from boostr.errors import DownloadError, ModelFileError
from boostr.io import hub
from boostr.io.hub import resolve, resolve_default
from boostr.io.safetensors import INDEX, SINGLE

pytestmark = pytest.mark.usefixtures("places")


def test_local_folder_and_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    found = resolve(tmp_path / "m")
    assert (found.path, found.kind, found.source) == (tmp_path / "m", "folder", str(tmp_path / "m"))
    (tmp_path / "any-name").write_bytes(GGUF)
    assert resolve(str(tmp_path / "any-name")).kind == "gguf"  # by content, not by suffix


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(GGUF)
    (tmp_path / "._a.gguf").write_bytes(b"\0\5\x16\7")  # macOS, on a drive of another system
    (tmp_path / "config.json").write_text("{}")  # of the model that was converted
    assert resolve(tmp_path).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(GGUF)
    with pytest.raises(ModelFileError, match=r"name one of the GGUF files in it: a\.gguf, b\.gguf"):
        resolve(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"")
    assert resolve(tmp_path).kind == "folder"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04", "pickle"),
        (b"\x80\x02..", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"{}", "expected a GGUF"),
        (b"", "GGUF"),
    ],
)
def test_other_local_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        resolve(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "model",
    [
        "./a/b",
        "/a/b",
        "~/no/such",
        "gpt2",
        "a/b/c",
        "x.gguf",
        "",
        "a b/c",
        "a/b:c.bin",
        Path("a/b"),
    ],
)
def test_what_is_neither_a_path_nor_an_id(model: str | Path) -> None:
    with pytest.raises(ModelFileError, match="no such file or folder, and not how"):
        resolve(model)


def test_a_path_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name").source == "org/name"
    with pytest.raises(ModelFileError, match="no revision"):
        resolve("org/name", revision="main")


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        ("org/name", None, ("org/name", None, None)),
        ("hf://org/name", None, ("org/name", None, None)),
        ("hf://org/n.a-m_e@v1.0", None, ("org/n.a-m_e", "v1.0", None)),
        ("org/name", "refs/pr/3", ("org/name", "refs/pr/3", None)),
        ("org/name:q/x-Q8_0.gguf", None, ("org/name", None, "q/x-Q8_0.gguf")),
        ("hf://org/name@v1:x.gguf", "v1", ("org/name", "v1", "x.gguf")),
    ],
)
def test_references(model: str, revision: str | None, expected: tuple[str, str, str]) -> None:
    assert hub._parse(model, revision) == hub._Reference(*expected)


def test_two_revisions() -> None:
    with pytest.raises(ModelFileError, match="names one revision, revision='b' another"):
        resolve("org/name@a", revision="b")


def test_unreachable_hub_falls_back_to_the_cache(places: SimpleNamespace) -> None:
    with pytest.raises(
        DownloadError, match=r"org/name: not found on this machine.*Error: no route"
    ):
        resolve("org/name")
    folder = snapshot(places.hf, "org/name", WHOLE)
    found = resolve("org/name")
    assert (found.path, found.kind, found.source) == (folder, "folder", f"hf://org/name@{COMMIT}")


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {SINGLE: "x"},
        {"config.json": "{}", INDEX: json.dumps({"weight_map": {"a": "s1", "b": "s2"}}), "s1": ""},
        {"config.json": "{}", INDEX: "{"},
        {"config.json": "{}", INDEX: "[]"},
    ],
)
def test_half_a_model_in_the_cache_does_not_count(
    places: SimpleNamespace, files: dict[str, str]
) -> None:
    snapshot(places.hf, "org/name", files)
    with pytest.raises(DownloadError, match="does not answer"):
        resolve("org/name")


def test_sharded_model_in_the_cache(places: SimpleNamespace) -> None:
    files = {"config.json": "{}", INDEX: json.dumps({"weight_map": {"a": "s1", "b": "s2"}})}
    folder = snapshot(places.hf, "org/name", {**files, "s1": "", "s2": ""})
    assert resolve("org/name", offline=True).path == folder


def test_gguf_in_the_cache(places: SimpleNamespace) -> None:
    folder = snapshot(places.hf, "org/name", {"x.gguf": "GGUF"})
    found = resolve("org/name:x.gguf", offline=True)
    assert (found.path, found.kind) == (folder / "x.gguf", "gguf")
    assert found.source == f"hf://org/name@{COMMIT}:x.gguf"
    with pytest.raises(DownloadError, match=r"org/name:y\.gguf: not found on this machine"):
        resolve("org/name:y.gguf", offline=True)


def test_offline_asks_nobody(places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the hub"))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("ran pip"))
    for call in (lambda **k: resolve("org/name", **k), resolve_default):
        with pytest.raises(DownloadError, match="offline mode is on"):
            call(offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="offline mode is on"):
        resolve("org/name")
    snapshot(places.hf, "org/name", WHOLE)
    assert resolve("org/name").kind == "folder"


def test_a_commit_in_the_cache_asks_nobody(
    places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the hub"))
    folder = snapshot(places.hf, "org/name", WHOLE)
    assert resolve(f"org/name@{COMMIT}").path == folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "no such repository.*spelling"),
        (errors.GatedRepoError, "accept the terms.*HF_TOKEN"),
        (errors.RevisionNotFoundError, "no such revision"),
    ],
)
def test_answers_of_the_hub(
    kind: type[errors.HfHubHTTPError],
    message: str,
    places: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot(places.hf, "org/name", WHOLE)  # an answer is an answer: the cache does not hide it
    monkeypatch.setattr(huggingface_hub, "HfApi", failing(hub_error(kind)))
    with pytest.raises(DownloadError, match=f"org/name: .*{message}"):
        resolve("org/name")


@pytest.mark.parametrize(
    ("model", "files", "message"),
    [
        ("org/name", ["config.json", "pytorch_model.bin"], "no model.safetensors.*pickles"),
        ("org/name", ["a.gguf", "b.gguf"], r"org/name:a\.gguf \(2 in all\)"),
        ("org/name:c.gguf", ["a.gguf", "b.gguf"], r"the GGUF files are: a\.gguf, b\.gguf"),
        ("org/name:c.gguf", ["config.json"], "the GGUF files are: none"),
    ],
)
def test_repositories_that_cannot_be_loaded(
    model: str, files: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", reachable(files))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("fetched")
    )
    with pytest.raises(DownloadError, match=message):
        resolve(model)


def test_download(places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(repo: str, **kwargs: Any) -> str:
        calls.append((repo, kwargs))
        return str(snapshot(places.hf, repo, WHOLE))

    monkeypatch.setattr(huggingface_hub, "HfApi", reachable([SINGLE, "config.json", "model.py"]))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name@v1").source == f"hf://org/name@{COMMIT}"
    expected = ("org/name", {"revision": "v1", "allow_patterns": hub.ALLOW_PATTERNS})
    assert calls == [expected]


def test_download_of_one_file(places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, name: str, revision: str | None) -> str:
        return str(snapshot(places.hf, repo, {name: "GGUF"}) / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", reachable(["a.gguf"]))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert resolve("org/name:a.gguf").source == f"hf://org/name@{COMMIT}:a.gguf"


def test_all_parts_of_a_split_gguf_are_fetched(
    places: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    fetched = []

    def download(repo: str, name: str, revision: str | None) -> str:
        fetched.append(name)
        return str(snapshot(places.hf, repo, dict.fromkeys(fetched, "GGUF")) / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", reachable(names))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = resolve(f"org/name:{names[1]}")
    assert fetched == names and found.path.name == "m-00001-of-00003.gguf"
    assert resolve(f"org/name:{names[2]}", offline=True).path == found.path
    (found.path.parent / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(DownloadError, match="not found on this machine"):
        resolve(f"org/name:{names[0]}", offline=True)


def test_download_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, **kwargs: Any) -> str:
        raise OSError("connection reset")

    monkeypatch.setattr(huggingface_hub, "HfApi", reachable([SINGLE]))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DownloadError, match=r"org/name: the download failed.*reset\); repeat it"):
        resolve("org/name")


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("config.json", True), ("1_Pooling/config.json", True), ("tokenizer.json", True),
        ("model.safetensors", True), ("model-00001-of-00002.safetensors", True),
        ("2_Dense/model.safetensors", True), ("chat_template.jinja", True), ("vocab.txt", True),
        ("additional_chat_templates/rag.jinja", True), ("modeling.py", False),
        ("pytorch_model.bin", False), ("model.pt", False), ("consolidated.safetensors", False),
        ("original/consolidated.00.pth", False), ("model.fp16.safetensors", False),
        ("onnx/model.onnx", False), ("rust_model.ot", False), ("x.pkl", False), ("a.gguf", False),
    ],
)  # fmt: skip
def test_what_is_fetched(name: str, fetched: bool) -> None:
    kept = list(
        huggingface_hub.utils.filter_repo_objects([name], allow_patterns=hub.ALLOW_PATTERNS)
    )
    assert bool(kept) == fetched


def test_a_silent_hub_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that swallows packets: no error comes, only nothing."""
    release = threading.Event()
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: release.wait())
    try:
        with pytest.raises(DownloadError, match=r"no answer in 0\.05 s"):
            resolve("org/name")
    finally:
        release.set()
