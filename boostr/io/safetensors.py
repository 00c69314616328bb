"""safetensors checkpoints: files mapped into memory without a copy, sharded folders, writing.

The `safetensors` package checks files and writes them; what it does not offer for numpy is a view
of a tensor that stays in the file, which is here. `open_safetensors` takes a file or a folder; what
it gives has `.names`, `.shape(name)`, `.dtype(name)`, `.tensor(name)`, `.metadata` and `.close()`
either way. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Self

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from boostr.dtypes import bfloat16, float8_e4m3, float8_e5m2
from boostr.errors import ModelFileError
from boostr.io.mapping import map_file, refuse_foreign, view_bytes
from boostr.io.scratch import scratch_beside
from boostr.io.settings import without_duplicates

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX = 256 * 1024 * 1024
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": bfloat16,
    "F8_E4M3": float8_e4m3, "F8_E5M2": float8_e5m2, "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"), "C64": np.dtype("<c8"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of a header; `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One memory-mapped safetensors file. Opening it checks the whole header, reads no tensor.

    Use it as a context manager or call `close`; tensors taken before stay valid after that.

    Raises:
        ModelFileError: the file breaks a rule of the format; the message names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data: mmap.mmap | None = map_file(self.path)
        self._infos, self.metadata = _read_header(self.path, self._data)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.path]

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the header."""
        return list(self._infos)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.info(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The numpy dtype (bf16 and fp8 from ml_dtypes) that `tensor(name)` has."""
        info = self.info(name)
        if info.dtype not in DTYPES:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} is {info.dtype}; boostr reads {', '.join(DTYPES)}"
            )
        return DTYPES[info.dtype]

    def tensor(self, name: str) -> np.ndarray:
        """A read-only view of the file, no copy (unaligned tensors are copied)."""
        info, dtype = self.info(name), self.dtype(name)
        if self._data is None:
            raise ModelFileError(f"{self.path}: tensor {name!r} was asked for after close()")
        try:
            return view_bytes(self._data, info.begin, info.end, dtype, info.shape)
        except ValueError as error:  # valid in the file, too many dimensions for numpy
            raise ModelFileError(f"{self.path}: tensor {name!r}: {error}") from None

    def close(self) -> None:
        """Drops the map; the memory goes when the last tensor taken from it does."""
        self._data = None

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def info(self, name: str) -> TensorInfo:
        """The header's row of a tensor, also of dtypes that `tensor` cannot give."""
        if name not in self._infos:
            raise ModelFileError(f"{self.path}: no tensor {name!r} among {len(self._infos)}")
        return self._infos[name]


def _read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The (tensors, metadata) of a mapped file that the package finds valid."""
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        with safe_open(path, framework="np"):  # type: ignore  (not in its stub)
            header = json.loads(data[8:start])
    except (SafetensorError, ValueError, RecursionError) as error:  # type: ignore
        refuse_foreign(path, data[:16])
        raise ModelFileError(
            f"{path}: not a valid safetensors file: {error!s:.400}; download it again"
        ) from None
    metadata = header.pop("__metadata__", None) or {}
    infos = {}
    for name, row in header.items():
        begin, end = row["data_offsets"]
        infos[name] = TensorInfo(row["dtype"], tuple(row["shape"]), start + begin, start + end)
    return infos, metadata


class SafetensorsFolder:
    """A checkpoint in shards, with the interface of `SafetensorsFile`.

    `model.safetensors.index.json` is the authority: every shard it lists must be there, and every
    tensor in the shard it names. What else these shards hold is part of the checkpoint too, as in
    transformers; other files in the folder are not.

    Raises:
        ModelFileError: lists all that is missing or there twice, or names a malformed file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        weight_map, self.metadata = _read_index(self.path / INDEX)
        paths = {shard: _shard_path(self.path, shard) for shard in set(weight_map.values())}
        missing = sorted(shard for shard, path in paths.items() if not path.is_file())
        if missing:
            raise ModelFileError(
                f"{self.path}: {len(missing)} of {len(paths)} shards listed in {INDEX} are "
                f"missing: {', '.join(missing)}; download the model again"
            )
        self._shards = {shard: SafetensorsFile(path) for shard, path in sorted(paths.items())}
        self._files = {name: self._shards[shard] for name, shard in weight_map.items()}
        self._check_index()

    @property
    def paths(self) -> list[Path]:
        """The shards."""
        return [file.path for file in self._shards.values()]

    @property
    def names(self) -> list[str]:
        """Names of all tensors: those of the index in its order, then what else the shards hold."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._file(name).shape(name)

    def dtype(self, name: str) -> np.dtype:
        """The numpy dtype (bf16 and fp8 from ml_dtypes) that `tensor(name)` has."""
        return self._file(name).dtype(name)

    def tensor(self, name: str) -> np.ndarray:
        """A read-only view of the shard, no copy (unaligned tensors are copied)."""
        return self._file(name).tensor(name)

    def info(self, name: str) -> TensorInfo:
        """The header's row of a tensor, also of dtypes that `tensor` cannot give."""
        return self._file(name).info(name)

    def close(self) -> None:
        """Drops the maps; the memory goes when the last tensor taken from them does."""
        for file in self._shards.values():
            file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise ModelFileError(f"{self.path}: no tensor {name!r} among {len(self._files)}")
        return self._files[name]

    def _check_index(self) -> None:
        absent = [name for name, file in self._files.items() if name not in file]
        twice = [
            f"{name} in {shard} and {self._files[name].path.name}"
            for shard, file in self._shards.items()
            for name in file.names
            if self._files.setdefault(name, file) is not file
        ]
        if absent or twice:
            self.close()
            raise ModelFileError(
                f"{self.path}: {INDEX} and the shards disagree; listed but not in their shard: "
                f"{_some(absent)}; in two shards: {_some(twice)}; the download is stale or mixed, "
                "fetch it again"
            )


SafetensorsSource = SafetensorsFile | SafetensorsFolder


def open_safetensors(path: str | Path) -> SafetensorsSource:
    """Opens a file, or the checkpoint in a folder: the one file if there is one, else the shards.

    Raises:
        ModelFileError: nothing to open, or anything malformed.
    """
    path = Path(path)
    if not path.is_dir():
        return SafetensorsFile(path)
    if (path / SINGLE).is_file():
        if (path / INDEX).is_file():
            warnings.warn(
                f"{path}: {SINGLE} is read; {INDEX} beside it is ignored, as in transformers",
                stacklevel=2,
            )
        return SafetensorsFile(path / SINGLE)
    if (path / INDEX).is_file():
        return SafetensorsFolder(path)
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    hint = (
        f" It holds {_some(pickles)}: pickles can run code when read, so boostr refuses them. "
        "Where you trust them and have torch: safetensors.torch.save_file(torch.load(f, "
        f"weights_only=True), '{SINGLE}')"
        if pickles
        else ""
    )
    raise ModelFileError(f"{path}: neither {INDEX} nor {SINGLE} is in this folder.{hint}")


def save(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file: beside `path` at first, then moved over it.

    Raises:
        ModelFileError: a dtype that the format does not have, or a name that it reserves.
        OSError: a full disk, as with any other file.
    """
    path = Path(path)
    if "__metadata__" in tensors:
        raise ModelFileError(f"{path}: cannot write a tensor named '__metadata__': it is reserved")
    dense = {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in tensors.items()}
    with scratch_beside(path) as scratch:
        made = scratch / path.name
        try:
            save_file(dense, made, dict(metadata) if metadata else None)
        except SafetensorError as error:
            if f"(os error {errno.ENOSPC})" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
            raise ModelFileError(f"{path}: cannot write these tensors: {error}") from None
        plain = scratch / "mode"  # the package writes for the owner alone
        plain.touch()
        made.chmod(plain.stat().st_mode)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(made, path)


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(tensor name -> shard file name, metadata) of an index file."""
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise ModelFileError(f"{path}: the index is over {_MAX_INDEX} bytes")
        index = json.loads(path.read_bytes(), object_pairs_hook=without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: the index is not readable JSON: {error}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path}: expected an object 'weight_map' of tensor name to file name")
    bad = [name for name, shard in weight_map.items() if not isinstance(shard, str)]
    if bad:
        raise ModelFileError(f"{path}: weight_map must give file names, not so for {_some(bad)}")
    metadata = index.get("metadata")
    strings = metadata.items() if isinstance(metadata, dict) else ()
    return weight_map, {key: value for key, value in strings if isinstance(value, str)}


def _shard_path(folder: Path, shard: str) -> Path:
    """The path of a shard, which data names: the name must not lead out of the folder.

    A link that lies in the folder is followed wherever it leads: hubs and users make them.
    """
    parts = PureWindowsPath(shard)  # knows both separators, and drives
    if not shard or "\0" in shard or ".." in parts.parts or parts.drive or parts.root:
        raise ModelFileError(f"{folder / INDEX}: shard name {shard!r} leads out of the folder")
    return folder / shard


def _some(names: list[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "none"
