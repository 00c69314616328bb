"""The GGUF format, versions 2 and 3: a bounded, memory-mapped reader.

Layout, all little-endian: magic, version, counts, key-value pairs, tensor infos, padding, data.
Every count is checked against the bytes that are left before anything is allocated from it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from boostr.dtypes import bfloat16
from boostr.errors import ModelFileError
from boostr.io.mapping import map_file, refuse_foreign, view_bytes
from boostr.quant.gguf import BLOCK_TYPES

MAX_STRING = 64 * 1024 * 1024  # bytes
MAX_ALIGNMENT = 1024 * 1024
MAX_DIMS = 4
MAX_NESTING = 4  # arrays of arrays
_MAX_SIZE = 2**63 - 1

# ggml's type ids: name, values in a block, bytes of a block (ggml_type_name, type_size).
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
REMOVED_TYPES = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
PLAIN_TYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": bfloat16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
}  # fmt: skip

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("u1"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_LEAST_BYTES = {_STRING: 8, _ARRAY: 12} | {t: dtype.itemsize for t, dtype in _SCALARS.items()}


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: `type` is ggml's name, `shape` is row-major (ggml's dims reversed)."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    _file: "GGUFFile" = field(repr=False, compare=False)
    _begin: int = field(repr=False, compare=False)

    @property
    def data(self) -> np.ndarray:
        """The tensor, read-only and without a copy.

        Plain types come as an array of `shape`; block types as uint8 `[rows, row_bytes]`, where
        rows is the product of all sizes but the last.

        Raises:
            ModelFileError: a block type that boostr does not compute with, or the file is closed.
        """
        dtype, shape = PLAIN_TYPES.get(self.type), self.shape
        if dtype is None:
            self.check_readable()
            rows = math.prod(shape[:-1])
            dtype, shape = np.dtype(np.uint8), (rows, self.nbytes // rows if rows else 0)
        return self._file.view(self._begin, self._begin + self.nbytes, dtype, shape)

    def check_readable(self) -> None:
        """Raises ModelFileError if boostr does not read this tensor's type."""
        if self.type not in PLAIN_TYPES and self.type not in BLOCK_TYPES:
            raise ModelFileError(
                f"{self._file.path}: tensor {self.name!r} is {self.type}; boostr reads F32, F16, "
                f"BF16, {', '.join(BLOCK_TYPES)}. Take a file of one of these types"
            )


class GGUFFile:
    """One memory-mapped GGUF file. Opening it reads and checks metadata and infos, no tensor.

    `metadata` maps keys to int, float, bool, str, list[str] or (numeric arrays) ndarray;
    `tensors` maps names to `GGUFTensor`. Use it as a context manager or call `close`; arrays
    taken before stay valid after that.

    Raises:
        ModelFileError: names the file and the rule of the format that it breaks.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data: mmap.mmap | None = map_file(self.path)
        reader = _Reader(self.path, self._data)
        self.version, n_tensors, n_pairs = _read_preamble(reader)
        self.metadata = _read_metadata(reader, n_pairs)
        self.tensors = _read_infos(self, reader, n_tensors, _alignment(reader, self.metadata))

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.path]

    def view(self, begin: int, end: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """Bytes [begin, end) of the file as a read-only array."""
        if self._data is None:
            raise ModelFileError(f"{self.path}: a tensor was asked for after close()")
        return view_bytes(self._data, begin, end, dtype, shape)

    def close(self) -> None:
        """Drops the map; the memory goes when the last array taken from it does."""
        self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Reader:
    """A cursor over the file that never reads past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def fail(self, rule: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: not a valid GGUF file: {rule} (at byte {self.at})")

    def need(self, count: int, each: int, what: str) -> None:
        """Checks that `count` items of at least `each` bytes can still be in the file."""
        if count * each > self.size - self.at:
            self.fail(f"{what}: {count} do not fit into the {self.size - self.at} bytes left")

    def integer(self, size: int) -> int:
        if self.size - self.at < size:
            self.fail("the file is truncated")
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def u32(self) -> int:
        return self.integer(4)

    def u64(self) -> int:
        return self.integer(8)

    def string(self, what: str) -> str:
        length = self.u64()
        if length > MAX_STRING:
            self.fail(f"{what}: a string of {length} bytes is over the limit of {MAX_STRING}")
        self.need(length, 1, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what}: a string is not UTF-8: {error}")

    def strings(self, count: int, what: str) -> list[str]:
        """Many strings: `string` unrolled, since a vocabulary has hundreds of thousands."""
        data, at, size, unpack = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        out = []
        try:
            for _ in range(count):
                end = at + 8 + unpack(data, at)[0]
                if end > size or end - at - 8 > MAX_STRING:
                    break
                out.append(data[at + 8 : end].decode("utf-8"))
                at = end
        except (struct.error, UnicodeDecodeError) as error:
            self.at = at
            self.fail(f"{what}: string {len(out)} of {count}: {error}")
        self.at = at
        if len(out) != count:
            self.fail(
                f"{what}: string {len(out)} of {count} runs past the end of the file or 64 MiB"
            )
        return out

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what, depth)
        if kind not in _SCALARS:
            self.fail(f"{what}: unknown value type {kind}; known: 0 to 12")
        dtype = _SCALARS[kind]
        self.need(1, dtype.itemsize, what)
        value = np.frombuffer(self.data, dtype, 1, self.at)[0].item()
        self.at += dtype.itemsize
        return self.boolean(value, what) if kind == _BOOL else value

    def boolean(self, value: int, what: str) -> bool:
        if value > 1:
            self.fail(f"{what}: a bool must be 0 or 1, got {value}")
        return bool(value)

    def array(self, what: str, depth: int) -> Any:
        kind, count = self.u32(), self.u64()
        if kind not in _LEAST_BYTES:
            self.fail(f"{what}: array of unknown value type {kind}; known: 0 to 12")
        self.need(count, _LEAST_BYTES[kind], what)
        if kind == _STRING:
            return self.strings(count, what)
        if kind == _ARRAY:
            if depth + 1 >= MAX_NESTING:
                self.fail(f"{what}: arrays nest deeper than {MAX_NESTING}")
            return [self.array(what, depth + 1) for _ in range(count)]
        dtype = _SCALARS[kind]
        values = np.frombuffer(self.data, dtype, count, self.at).copy() if count else dtype.type(())
        self.at += count * dtype.itemsize
        if kind == _BOOL:
            self.boolean(int(values.max(initial=0)), what)
            return values.astype(np.bool_)
        return values


def _read_preamble(reader: _Reader) -> tuple[int, int, int]:
    """(version, number of tensors, number of key-value pairs)."""
    magic = reader.data[:4]
    if magic != b"GGUF":
        refuse_foreign(reader.path, reader.data[:16])
        reader.fail(f"expected the magic b'GGUF', got {magic!r}")
    reader.at = 4
    version = reader.u32()
    if version & 0xFFFF == 0 and version:
        reader.fail("it is big-endian; boostr reads little-endian files, convert it with "
                    "gguf_convert_endian.py")  # fmt: skip
    if version == 1:
        reader.fail("it is version 1; boostr reads versions 2 and 3, convert the model again")
    if version not in (2, 3):
        reader.fail(f"it is version {version}; boostr reads versions 2 and 3")
    n_tensors, n_pairs = reader.u64(), reader.u64()
    reader.need(n_pairs, 8 + 4 + 1, "key-value pairs")
    reader.need(n_tensors, 8 + 4 + 4 + 8, "tensor infos")
    return version, n_tensors, n_pairs


def _read_metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.string("a metadata key")
        if key in metadata:
            reader.fail(f"metadata key {key!r:.200} is there twice")
        kind = reader.u32()
        metadata[key] = reader.value(kind, f"metadata {key!r:.200}")
    return metadata


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        reader.fail(
            f"general.alignment must be a power of two <= {MAX_ALIGNMENT}, got {value!r:.40}"
        )
    return value


def _read_infos(
    file: GGUFFile, reader: _Reader, count: int, alignment: int
) -> dict[str, GGUFTensor]:
    """The tensor table; the offsets in it count from the aligned end of the table."""
    rows: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = reader.string("a tensor name")
        if name in rows:
            reader.fail(f"tensor {name!r:.200} is there twice")
        rows[name] = _read_info(reader, f"tensor {name!r:.200}")
    start = -(-reader.at // alignment) * alignment
    end = start
    for name, (_, _, offset, nbytes) in sorted(rows.items(), key=lambda row: row[1][2:]):
        if offset % alignment:
            reader.fail(f"tensor {name!r:.200}: offset {offset} is no multiple of {alignment}")
        if start + offset < end:
            reader.fail(f"tensor {name!r:.200} at offset {offset} overlaps another tensor")
        end = start + offset + nbytes
        if end > reader.size and nbytes:
            reader.fail(
                f"tensor {name!r:.200} ends at byte {end} of a file of {reader.size}: "
                "the file is truncated, download it again"
            )
    return {
        name: GGUFTensor(name, kind, shape, nbytes, file, start + offset)
        for name, (kind, shape, offset, nbytes) in rows.items()
    }


def _read_info(reader: _Reader, what: str) -> tuple[str, tuple[int, ...], int, int]:
    """(type, row-major shape, offset, bytes) of one tensor."""
    n_dims = reader.u32()
    if n_dims > MAX_DIMS:
        reader.fail(f"{what} has {n_dims} dimensions, the limit is {MAX_DIMS}")
    shape = tuple(reader.u64() for _ in range(n_dims))[::-1]
    type_id, offset = reader.u32(), reader.u64()
    if type_id not in GGML_TYPES:
        known = f"{REMOVED_TYPES[type_id]}, which ggml removed" if type_id in REMOVED_TYPES else ""
        reader.fail(f"{what} has the unknown ggml type {type_id} {known}".rstrip())
    kind, block, block_bytes = GGML_TYPES[type_id]
    columns = shape[-1] if shape else 1
    if columns % block:
        reader.fail(f"{what}: rows of {columns} are no multiple of the {block} of {kind}")
    nbytes = math.prod(shape) // block * block_bytes
    if nbytes > _MAX_SIZE or offset > _MAX_SIZE or any(size > _MAX_SIZE for size in shape):
        reader.fail(f"{what} of shape {shape} is larger than any file")
    return kind, shape, offset, nbytes
