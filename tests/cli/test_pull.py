"""boostr pull: where a model lies and where it came from."""

import json
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """org/name in a Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--org--name"
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return folder


def test_from_the_cache(boostr, cached: Path) -> None:
    result = boostr("pull", "org/name", "--offline", "-v")
    assert result.exit_code == 0 and result.stdout == f"{cached}\n"
    assert f"from hf://org/name@{COMMIT}" in result.stderr and "on disk" in result.stderr
    done = json.loads(boostr("pull", "hf://org/name@main", "--offline", "--json").stdout)
    assert done == {"path": str(cached), "kind": "folder", "source": f"hf://org/name@{COMMIT}"}


def test_a_folder_is_where_it_is(boostr, tiny: str) -> None:
    assert boostr("pull", tiny).stdout == f"{tiny}\n"


def test_not_to_be_had(boostr, cached: Path) -> None:
    result = boostr("pull", "org/other", "--offline")
    assert result.exit_code == 1 and result.stdout == "" and "org/other" in result.stderr
    assert boostr("pull", "org/name", "--offline", "--revision", "v9").exit_code == 1
    assert boostr("pull", "--revision", "v9").exit_code == 2
