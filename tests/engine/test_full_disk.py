"""quantize and convert where the disk has too little room: an error with path and size, no rest."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import safetensors
from tiny_model import make_tiny

import boostr
from boostr.errors import DiskFullError, ModelFileError

WRITES = {
    "folder": lambda source, out: boostr.quantize(source, out / "o", "int8"),
    "file": lambda source, out: boostr.convert(source, out / "o.gguf"),
    "back": lambda source, out: boostr.convert(out.parent / "source.gguf", out / "o"),
}


@pytest.fixture
def source(tmp_path):
    folder = make_tiny(tmp_path / "source")
    boostr.convert(folder, tmp_path / "source.gguf")
    (tmp_path / "out").mkdir()
    return folder


@pytest.mark.parametrize("what", WRITES)
def test_too_little_room_is_seen_before(source, tmp_path, what, monkeypatch):
    asked = []
    usage = lambda path: asked.append(path) or SimpleNamespace(free=1000)  # noqa: E731
    monkeypatch.setattr("boostr.io.disk.shutil.disk_usage", usage)
    with pytest.raises(DiskFullError, match=r"/out/o\S*: it takes 0\.1 MB, .* 0\.0 MB left"):
        WRITES[what](source, tmp_path / "out")
    assert asked == [tmp_path / "out"] and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_becomes_full(source, tmp_path, what, error, monkeypatch):
    def full(*args, **options):
        if what == "file":
            raise OSError(error, os.strerror(error))
        raise safetensors.SafetensorError(f"I/O error: {os.strerror(error)} (os error {error})")

    monkeypatch.setattr("boostr.io.gguf_writer._write_data", full)
    monkeypatch.setattr("boostr.io.safetensors.save_file", full)
    wanted, said = ModelFileError if what != "file" else OSError, os.strerror(error)
    if error == errno.ENOSPC:
        wanted, said = DiskFullError, r"/out/o\S*: the disk became full; it takes 0\.1 MB"
    with pytest.raises(wanted, match=said):
        WRITES[what](source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
