"""Maps of files: what is given back is there again when it is asked for."""

import mmap

import numpy as np
import pytest

from boostr.io.mapping import map_file, release, view_bytes


def resident(view):
    """Kilobytes of the map of a view that are in memory."""
    at = view.ctypes.data
    with open("/proc/self/smaps") as file:
        inside = False
        for line in file:
            if "-" in line.split(" ")[0]:
                first, last = (int(word, 16) for word in line.split(" ")[0].split("-"))
                inside = first <= at < last
            elif inside and line.startswith("Rss:"):
                return int(line.split()[1])
    raise AssertionError("the view is in no map")


def test_release(tmp_path):
    path, size = tmp_path / "x", 64 * mmap.PAGESIZE
    path.write_bytes(np.arange(size // 4, dtype=np.uint32).tobytes())
    view = view_bytes(map_file(path), 100, size - 100, np.dtype(np.uint32), (size // 4 - 50,))
    total = int(view.sum(dtype=np.int64))
    part = view.reshape(-1, 2)[: len(view) // 4]  # a view of a view: half of the pages
    try:
        before = resident(view)
    except FileNotFoundError:
        pytest.skip("no /proc/self/smaps on this system")
    release(part)
    assert resident(view) <= before - 30 * mmap.PAGESIZE // 1024
    assert int(view.sum(dtype=np.int64)) == total


def test_release_of_what_is_no_map():
    x = np.arange(100_000)
    release(x)
    release(x[:0])
    assert x[-1] == 99_999
