"""Scratch folders: where something is made before it is moved to its name."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from boostr.errors import OptionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_MARK = "being-written"  # a file that the process that writes holds a lock on, while it lives


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A hidden folder `.NAME.*` beside `path`, for what will be moved there; gone in the end.

    Those that runs for the same `path` left when they were killed are removed first.
    """
    _clear(path)
    with contextlib.ExitStack() as held:  # until nothing of the folder is left
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
        try:
            held.enter_context(_marked(scratch))
            yield scratch
        finally:
            shutil.rmtree(scratch)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While a folder is this caller's, as far as its disk has locks.

    Raises:
        OptionError: it is another's.
    """
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise OptionError(f"{folder}: another run is at work in this folder") from None
    except OSError:  # no locks here
        pass
    try:
        yield
    finally:
        os.close(held)


def _prefix(path: Path) -> str:
    return f".{path.name}."


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """A mark in a folder, whose lock falls when this process ends, in whatever way."""
    if fcntl is None:
        yield
        return
    unlocked = folder / "unlocked"
    with unlocked.open("w") as file:
        if _lock(file):
            unlocked.rename(folder / _MARK)  # so that no mark is ever without its lock
        yield


def _lock(file: IO) -> bool:
    """Whether nobody else holds the lock of a file, and its disk has such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[union-attr]
    except OSError:
        return False
    return True


def _clear(path: Path) -> None:
    """Remove marked folders of `path` whose writer is dead."""
    if fcntl is None:
        return
    for folder in [f for f in path.parent.iterdir() if f.name.startswith(_prefix(path))]:
        with contextlib.suppress(OSError), (folder / _MARK).open() as mark:
            if _lock(mark):
                shutil.rmtree(folder)
