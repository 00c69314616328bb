"""Read-only memory maps of model files, and typed views into them."""

import mmap
from pathlib import Path

import numpy as np

from boostr.errors import ModelFileError

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")

_LFS_POINTER = b"version https:"  # "version https://git-lfs.github.com/spec/v1"


def map_file(path: str | Path) -> mmap.mmap:
    """Maps a whole file read-only; the file handle is closed before this returns.

    The map is freed when its last user (a numpy view, say) is gone. It is never closed by hand:
    that would fail while a view of it is alive.

    Raises:
        ModelFileError: missing, a folder, unreadable or empty.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path}: expected a file, got a folder") from None
    except ValueError:  # mmap refuses a length of 0
        raise ModelFileError(f"{path}: the file is empty") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raises if `head`, the first bytes of a file, are those of a pickle or a git-LFS pointer.

    Judged by content and not by suffix, so that a renamed pickle is named as what it is.
    """
    if head.startswith(_PICKLES):
        raise ModelFileError(
            f"{path}: this is a pickle or zip as torch.save writes it, which can run code when it "
            "is read; boostr never reads one. Convert it to safetensors where you trust it"
        )
    if head.startswith(_LFS_POINTER):
        raise ModelFileError(
            f"{path}: this is a git-LFS pointer, not the file itself; fetch it with `git lfs pull` "
            "in the repository (git-lfs must be installed)"
        )


def view_bytes(
    data: mmap.mmap, begin: int, end: int, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    """Bytes [begin, end) of a map as a read-only array, without a copy.

    Offsets that are no multiple of the item size give an aligned copy instead, since compiled
    kernels may not take unaligned memory. The caller has checked the range against the map.
    """
    raw = np.frombuffer(data, np.uint8, count=end - begin, offset=begin if end > begin else 0)
    if begin % dtype.alignment:
        raw = raw.copy()
        raw.flags.writeable = False
    return raw.view(dtype).reshape(shape)


def release(array: np.ndarray) -> None:
    """Give back the memory that a view of a map takes: pages that are asked for again are read
    again. Of what is no view of a map, nothing."""
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if size > 0:
        owner.madvise(mmap.MADV_DONTNEED, first, size)
