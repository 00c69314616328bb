"""Rows of training data, out of jsonl, json, txt, npy and parquet files, or folders of these.

A row is a dict of columns. Files are read in the order of their names, a line or a row group at a
time. A folder has splits: files named train*, valid* and test*, or folders of these names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, KeysView
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boostr.errors import DataError
from boostr.io.settings import without_duplicates

SPLITS = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test",),
}


_RAW = (
    "bare token ids do not say of how many bits they are; write them with it: "
    "np.save('train.npy', np.fromfile('train.bin', np.uint16)), or uint32"
)


class Row(NamedTuple):
    """One record.

    Attributes:
        columns: name -> value.   where: file and line, for messages.
    """

    columns: dict[str, Any]
    where: str

    @property
    def given(self) -> KeysView[str]:
        """Names of the columns that have a value, in their order."""
        return {name: None for name, value in self.columns.items() if value is not None}.keys()


def files_of(path: str | Path, split: str = "train") -> list[Path]:
    """The files of a split, sorted; of a file itself, which has no splits, the file.

    In a folder without any split in its names all is for training.

    Raises:
        DataError: nothing is there, or nothing of that split.
    """
    path = Path(path)
    if path.suffix == ".bin":
        raise DataError(f"{path}: {_RAW}")
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if path.is_file():
        if path.suffix not in _READERS:
            raise DataError(f"{path}: expected a file that ends with {', '.join(_READERS)}")
        return [path] if split == "train" else []
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    all_files = _visible(path)
    visible = [p for p in all_files if p.suffix in _READERS]
    found = [p for p in visible if _split_of(p.relative_to(path)) == split]
    if not found and split == "train":
        found = visible if not any(_split_of(p.relative_to(path)) for p in visible) else []
    if not found and split == "train":
        raw = next((p for p in all_files if p.suffix == ".bin"), None)
        if raw is not None:
            raise DataError(f"{raw}: {_RAW}")
        raise DataError(f"{path}: no training data; expected {', '.join(_READERS)} files in it")
    return found


def _visible(folder: Path) -> list[Path]:
    """The files in it and in its folders, in order. What is hidden may come and go meanwhile."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root) / name for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())  # links may lead nowhere


def _split_of(inside: Path) -> str | None:
    """The split that a file's name begins with, or a folder on the way to it is called."""
    begins = inside.name.replace("-", ".").replace("_", ".").split(".")[0]
    for part in (begins, *inside.parts[:-1]):
        for split, names in SPLITS.items():
            if part in names:
                return split
    return None


def rows_of(files: list[Path]) -> Iterator[Row]:
    """All rows of some files.

    Raises:
        DataError: what is malformed, by file and line.
    """
    for path in files:
        yield from _READERS[path.suffix](path)


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            text = _decoded(line, where).strip()
            if not text:
                continue
            yield Row(_object(_parsed(text, where), where), where)


def _whole(path: Path) -> Iterator[Row]:
    """A list of objects; or, as many name files, lines of them."""
    text = _decoded(path.read_bytes(), str(path))
    if text.lstrip().startswith("{"):
        yield from _lines(path)
        return
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        yield Row(_object(row, where), where)


def _text(path: Path) -> Iterator[Row]:
    """One document; lines end as on Unix."""
    text = _decoded(path.read_bytes(), str(path))
    yield Row({"text": text.replace("\r\n", "\n")}, str(path))


def _ids(path: Path) -> Iterator[Row]:
    """Token ids of one document, or of one in each row."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise DataError(
            f"{path}: expected token ids [T] or [N, T], got {array.dtype}{list(array.shape)}"
        )
    for number, ids in enumerate(array if array.ndim == 2 else array[None]):
        yield Row({"input_ids": ids}, f"{path}[{number}]")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path}: parquet needs pyarrow; pip install 'boostr[data]'") from None
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for columns in batch.to_pylist():
                    yield Row(columns, f"{path}[{number}]")
                    number += 1
    except ArrowInvalid as error:
        raise DataError(f"{path}: not parquet: {error}") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _lines, ".json": _whole, ".txt": _text, ".npy": _ids, ".parquet": _parquet,
}  # fmt: skip


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; convert the file"
        ) from None


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if r"\ud" in text.lower():  # half of a pair may be escaped, but is no text
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {error.object[error.start]!r} is half of a surrogate pair, and no text"
            ) from None
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object of columns, got {type(value).__name__}")
    return value
