"""Validation of a safetensors header: nothing is believed before it is checked.

A file is a little-endian u64 (length of the header), a JSON header, and one buffer that the
tensors cover without overlap or hole. Format: https://github.com/huggingface/safetensors#format
"""

import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from boostr.dtypes import bfloat16, float8_e4m3, float8_e5m2
from boostr.errors import ModelFileError
from boostr.io.mapping import refuse_pickle

MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_MAX_INT = 2**64 - 1

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": bfloat16,
    "F8_E4M3": float8_e4m3, "F8_E5M2": float8_e5m2, "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"), "C64": np.dtype("<c8"),
}  # fmt: skip
_SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # valid in a file, not read by boostr
_BITS = {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} | _SUB_BYTE_BITS

Fail = Callable[[str], NoReturn]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the header; `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The (tensors, metadata) of a mapped file, every rule of the format checked.

    Raises:
        ModelFileError: names the file, the tensor and the rule that is broken.
    """

    def fail(rule: str) -> NoReturn:
        refuse_pickle(path, data[:4])
        raise ModelFileError(f"{path}: not a valid safetensors file: {rule}")

    if len(data) < 8:
        fail(f"expected at least 8 bytes, got {len(data)}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        fail(f"header length {length} is over the limit of {MAX_HEADER}")
    if 8 + length > len(data):
        fail(f"header of {length} bytes in a file of {len(data)}; the file is truncated")
    header = _parse_json(data[8 : 8 + length], fail)
    metadata = _check_metadata(header.pop("__metadata__", None), fail)
    rows = {name: _check_row(name, row, 8 + length, fail) for name, row in header.items()}
    _check_layout(rows, 8 + length, len(data), fail)
    return rows, metadata


def _parse_json(raw: bytes, fail: Fail) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        fail("the header must start with '{'")
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, JSONDecodeError
        fail(f"the header is not JSON: {error}")


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for json that refuses a key that is there twice."""
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r:.200} is there twice")
    return keys


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _is_text(value: object) -> bool:
    """A string that UTF-8 can hold: JSON escapes may smuggle in half a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _check_metadata(metadata: Any, fail: Fail) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        fail(f"__metadata__ must map strings to strings, got {type(metadata).__name__}")
    for key, value in metadata.items():
        if not _is_text(key) or not _is_text(value):
            fail(f"__metadata__[{key!r:.200}] must be a string, got {value!r:.80}")
    return metadata


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INT  # bool is an int, hence `type`


def _check_row(name: str, row: Any, data_start: int, fail: Fail) -> TensorInfo:
    if not _is_text(name) or not isinstance(row, dict):
        fail(f"tensor {name!r:.200} must be an object, got {row!r:.80}")
    dtype, shape, offsets = (row.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        fail(f"tensor {name!r:.200} has dtype {dtype!r:.80}; known: {', '.join(_BITS)}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        fail(f"tensor {name!r:.200} has shape {shape!r:.80}; expected a list of sizes >= 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        fail(f"tensor {name!r:.200} has data_offsets {offsets!r:.80}; expected [begin, end]")
    bits = _BITS[dtype]
    for size in shape:
        bits *= size
        if bits > _MAX_INT:  # stop here: a long list of large sizes would be slow to multiply
            fail(f"tensor {name!r:.200} with shape {shape!r:.80} is larger than any file")
    begin, end = offsets
    if bits % 8 or bits // 8 != end - begin:
        fail(
            f"tensor {name!r:.200}: {dtype} of shape {shape!r:.80} takes {bits} bits, its "
            f"data_offsets {offsets} hold {(end - begin) * 8}"
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _check_layout(rows: dict[str, TensorInfo], start: int, size: int, fail: Fail) -> None:
    """The tensors must cover the buffer exactly: no overlap, no hole, nothing behind."""
    expected = start
    for name, row in sorted(rows.items(), key=lambda item: (item[1].begin, item[1].end)):
        if row.begin != expected:
            kind = "a hole before it" if row.begin > expected else "it overlaps another tensor"
            fail(
                f"tensor {name!r:.200} begins at {row.begin - start}, expected "
                f"{expected - start}: {kind}"
            )
        expected = row.end
    if expected != size:
        fail(f"the tensors end at byte {expected}, the file at {size}")
