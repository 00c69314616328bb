"""Writing GGUF, version 3: metadata and a table of tensors, then their data as it is made.

The gguf package writes it too; it would bring four packages more into every install, for a page.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from boostr.errors import ModelFileError
from boostr.io.disk import room_for
from boostr.io.gguf import GGML_TYPES
from boostr.io.scratch import scratch_beside

ALIGNMENT = 32
_IDS = {name: (id_, size, nbytes) for id_, (name, size, nbytes) in GGML_TYPES.items()}
_BOOL, _STRING, _ARRAY, _U32, _F32, _U64 = 7, 8, 9, 4, 6, 10
_ARRAYS = {np.dtype("u1"): 0, np.dtype("i4"): 5, np.dtype("f4"): 6, np.dtype("?"): _BOOL}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        type: a name of ggml.   shape: row-major.
        data: gives its bytes, in pieces of any size: arrays that lie in a row.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        _, size, nbytes = _IDS[self.type]
        return math.prod(self.shape) // size * nbytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write a file: beside `path` at first, then moved over it; one piece of data is in memory.

    Args:
        metadata: bool, int (32 bits, or 64 if need be), float (32 bits), str, a list of str, or an
            array of bool, int32 or float32.
        progress: called after each tensor: (tensors done, of how many, name).
    Raises:
        ModelFileError: data of another size than the type and shape say.
        DiskFullError: too little room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.nbytes for tensor in tensors)
    with scratch_beside(path) as scratch, room_for(path, size):
        made = scratch / path.name
        with made.open("wb") as file:
            file.write(b"".join(_header(metadata, tensors)))
            for number, tensor in enumerate(tensors):
                _pad(file)
                _write_data(file, tensor)
                if progress is not None:
                    progress(number + 1, len(tensors), tensor.name)
            _pad(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)


def _header(metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> Iterator[bytes]:
    yield b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, encoded = _value(key, value)
        yield _string(key) + struct.pack("<I", kind) + encoded
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        yield _string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        yield struct.pack("<IQ", _IDS[tensor.type][0], offset)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _value(key: str, value: Any) -> tuple[int, bytes]:
    """(type, bytes) of a value."""
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (
            (_U32, struct.pack("<I", value)) if value < 2**32 else (_U64, struct.pack("<Q", value))
        )
    if isinstance(value, float):
        return _F32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _string(value)
    if isinstance(value, np.ndarray) and value.dtype in _ARRAYS:
        return _ARRAY, struct.pack("<IQ", _ARRAYS[value.dtype], value.size) + value.tobytes()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _ARRAY, struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_string, value))
    raise ModelFileError(f"GGUF metadata {key!r}: {type(value).__name__} cannot be written")


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _write_data(file: BinaryIO, tensor: NewTensor) -> None:
    start = file.tell()
    for piece in tensor.data():
        file.write(np.ascontiguousarray(piece).view(np.uint8).data)
    if file.tell() - start != tensor.nbytes:
        raise ModelFileError(
            f"tensor {tensor.name}: {tensor.type} {list(tensor.shape)} takes {tensor.nbytes} "
            f"bytes, got {file.tell() - start}"
        )
