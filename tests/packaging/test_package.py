"""What pip installs: the wheel's contents, and the size of boostr with what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LIMIT_MB = 150


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="building the wheel needs the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("boostr-*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_wheel_has_every_module_and_nothing_else(wheel):
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "boostr").rglob("*.py")}
    packed = {n for n in wheel.namelist() if n.endswith(".py")}
    assert packed == sources


def test_gpu_sources_ship_in_the_wheel(wheel):
    folder = ROOT / "shaders"
    sources = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert sources
    for source in sources:
        assert f"boostr/shaders/{source.as_posix()}" in wheel.namelist()


def requirements(name: str, found: set[str]) -> set[str]:
    """The distributions that `name` pulls in without extras, itself included."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in found:
        return found
    found.add(name)
    for line in metadata.requires(name) or ():
        requirement, _, marker = line.partition(";")
        if "extra" in marker or _excluded(marker):
            continue
        match = re.match(r"[\w.-]+", requirement)
        assert match is not None
        requirements(match[0], found)
    return found


def _excluded(marker: str) -> bool:
    if not marker.strip():
        return False
    from packaging.markers import Marker

    return not Marker(marker).evaluate()


def test_base_install_is_small_and_has_no_framework():
    names = requirements("boostr", set())
    assert not names & {"torch", "transformers", "numba", "llvmlite", "cupy", "wgpu", "jax"}
    files = (f for n in names if n != "boostr" for f in metadata.files(n) or ())
    total = sum(Path(f.locate()).stat().st_size for f in files if Path(f.locate()).is_file())
    assert total / 1e6 <= LIMIT_MB, f"{total / 1e6:.0f} MB in {len(names)} packages"


def test_the_version_is_that_of_the_package():
    import boostr

    assert metadata.version("boostr") == boostr.__version__


def test_doctor_knows_what_boostr_needs():
    from boostr.cli import checks

    needed = {
        re.match(r"[\w.-]+", line)[0]  # type: ignore[index]
        for line in metadata.requires("boostr") or ()
        if "extra" not in line
    }
    assert set(checks.NEEDED) == needed
