"""The files of compiled kernels: checked when read, put in place whole, mapped as code.

A file is a head of 128 bytes (magic, length and SHA-256 of the rest, the entry's offset) and a
body: an image (`elf.py`) whose code begins at offset `entry`, or with entry -1 anything else.
"""

import hashlib
import os
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from boostr import env
from boostr.backends.numpy.runtime.elf import map_file

MAGIC = b"boostr kernel 2\n"
HEAD = 128
OBJECT = -1  # the entry of a body that is not an image

_warned = False
_mapped: list = []  # the code lives as long as its mapping


@dataclass(frozen=True)
class KernelFile:
    """A checked file: its body, its entry, and the entry's address if the file could be mapped."""

    body: bytes
    entry: int
    address: int | None


def folder() -> Path:
    return env.cache_dir() / "kernels"


def say(text: str) -> None:
    print(f"boostr: {text}", file=sys.stderr, flush=True)


def read(path: Path) -> KernelFile | None:
    """A file of the cache; None if it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
            entry = _check(data)
            if entry is None:
                return None
            address = _map(file.fileno(), len(data), entry) if entry != OBJECT else None
    except OSError:
        return None
    return KernelFile(data[HEAD:], entry, address)


def _check(data: bytes) -> int | None:
    """The entry of a file's content; None unless length and hash are right."""
    if len(data) < HEAD or not data.startswith(MAGIC):
        return None
    length, entry = struct.unpack_from("<qq", data, len(MAGIC))
    digest = hashlib.sha256(struct.pack("<q", entry) + data[HEAD:]).digest()
    stored = data[len(MAGIC) + 16 : len(MAGIC) + 48]
    return entry if length == len(data) - HEAD and digest == stored else None


def _map(descriptor: int, size: int, entry: int) -> int | None:
    mapping = map_file(descriptor, size, HEAD + entry)
    if mapping is None:
        return None
    _mapped.append(mapping)
    return mapping[1]


def write(path: Path, body: bytes, entry: int = OBJECT) -> None:
    """Puts a file in its place in one step, so that no reader ever sees half of one."""
    digest = hashlib.sha256(struct.pack("<q", entry) + body).digest()
    head = MAGIC + struct.pack("<qq", len(body), entry) + digest
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(head.ljust(HEAD, b"\0") + body)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        _warn(path.parent, error)


def _warn(where: Path, error: OSError) -> None:
    """One line on stderr the first time that nothing can be kept."""
    global _warned
    if not _warned:
        _warned = True
        say(
            f"cannot keep compiled kernels in {where} ({error.strerror}); "
            f"set {env.CACHE.name} to a folder that can be written"
        )
