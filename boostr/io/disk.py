"""Room on a disk: asked for before something large is written, and named where it runs out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boostr.errors import DiskFullError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def room_for(path: Path, nbytes: int) -> Iterator[None]:
    """While `path` is written, which takes about `nbytes`.

    Raises:
        DiskFullError: its disk has less, before anything is written or while it is.
    """
    needed = f"it takes {nbytes / 1e6:,.1f} MB"
    free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
    if free < nbytes:
        raise DiskFullError(f"{path}: {needed}, and its disk has {free / 1e6:,.1f} MB left")
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(f"{path}: the disk became full; {needed}") from None
