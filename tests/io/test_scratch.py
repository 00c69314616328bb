"""Scratch folders: gone in the end, and those of dead writers gone at the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from boostr.io.scratch import scratch_beside

killed = pytest.mark.skipif(
    sys.platform == "win32", reason="locks of files that fall with a process"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def writer(out: Path) -> subprocess.Popen:
    """A process that is writing `out`."""
    code = (
        "import pathlib, time\n"
        "from boostr.io.scratch import scratch_beside\n"
        f"with scratch_beside(pathlib.Path({str(out)!r})) as scratch:\n"
        "    (scratch / 'half').write_text('x')\n"
        "    print('writing', flush=True); time.sleep(600)"
    )
    made = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and made.stdout.readline() == "writing\n"
    return made


def end(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_it_is_beside_and_gone_in_the_end(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyError), scratch_beside(out) as scratch:
        (scratch / "made").write_text("x")
        assert scratch.parent == tmp_path and scratch.name.startswith(".out.")
        raise KeyError
    with scratch_beside(out) as scratch:
        (scratch / "made").write_text("x")
        (scratch / "made").rename(out)
    assert names(tmp_path) == ["out"]


@killed
def test_what_a_killed_writer_left_is_removed(tmp_path):
    end(writer(tmp_path / "out"))
    assert len(names(tmp_path)) == 1
    with scratch_beside(tmp_path / "other"):
        assert len(names(tmp_path)) == 2
    with scratch_beside(tmp_path / "out") as scratch:
        assert names(tmp_path) == [scratch.name]
    assert names(tmp_path) == []


@killed
def test_a_living_writer_keeps_its_own(tmp_path):
    other = writer(tmp_path / "out")
    try:
        before = names(tmp_path)
        with scratch_beside(tmp_path / "out"):
            assert (tmp_path / before[0] / "half").exists()
        assert names(tmp_path) == before and len(before) == 1
    finally:
        end(other)


def test_folders_that_no_run_has_made_stay(tmp_path):
    for name in (".out.settings", ".out.file"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.file" / "a").write_text("x")
    (tmp_path / ".out.text").write_text("x")
    before = names(tmp_path)
    with scratch_beside(tmp_path / "out"):
        pass
    assert names(tmp_path) == before
