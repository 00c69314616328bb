"""safetensors checkpoints: memory-mapped files, sharded folders, and writing.

`open_safetensors` takes a file or a folder; what it gives has `.names`, `.shape(name)`,
`.dtype(name)`, `.tensor(name)`, `.metadata` and `.close()` either way.
"""

import json
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, Self

import numpy as np

from boostr.dtypes import parse
from boostr.errors import ModelFileError
from boostr.io.mapping import map_file, view_bytes
from boostr.io.safetensors_header import DTYPES, TensorInfo, read_header, without_duplicates

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX = 256 * 1024 * 1024


class SafetensorsFile:
    """One memory-mapped safetensors file. Opening it checks the whole header, reads no tensor.

    Use it as a context manager or call `close`; tensors taken before stay valid after that.

    Raises:
        ModelFileError: the file breaks a rule of the format; the message names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data: mmap.mmap | None = map_file(self.path)
        self._infos, self.metadata = read_header(self.path, self._data)

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


class SafetensorsFolder:
    """A checkpoint in shards, with the interface of `SafetensorsFile`.

    `model.safetensors.index.json` is the authority: every shard it lists must be there, every
    tensor must lie in the shard it names, and a shard may hold nothing that is not listed.
    Other files in the folder are ignored.

    Raises:
        ModelFileError: lists all that is missing or unlisted, or the header that is malformed.
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
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the index."""
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
        unlisted = [
            f"{name} in {shard}"
            for shard, file in self._shards.items()
            for name in file.names
            if self._files.get(name) is not file
        ]
        if absent or unlisted:
            self.close()
            raise ModelFileError(
                f"{self.path}: {INDEX} and the shards disagree; "
                f"listed but not in their shard: {_some(absent)}; in a shard but not listed "
                f"there: {_some(unlisted)}; the download is stale or mixed, fetch it again"
            )


SafetensorsSource = SafetensorsFile | SafetensorsFolder


def open_safetensors(path: str | Path) -> SafetensorsSource:
    """Opens a file, or the checkpoint in a folder: the index if there is one, else the one file.

    Raises:
        ModelFileError: nothing to open, or anything malformed.
    """
    path = Path(path)
    if not path.is_dir():
        return SafetensorsFile(path)
    if (path / INDEX).is_file():
        return SafetensorsFolder(path)
    if (path / SINGLE).is_file():
        return SafetensorsFile(path / SINGLE)
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
    """Writes a safetensors file: to a temporary file next to `path`, then renamed over it.

    Raises:
        ModelFileError: a dtype that the format does not have, or a name that it reserves.
    """
    path = Path(path)
    header, arrays = _header_of(path, tensors, metadata)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for array in arrays:
                # One tensor at a time: only those that are not contiguous are ever copied.
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only the owner reads
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _header_of(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[np.ndarray]]:
    """The JSON header, padded to 8 bytes, and the arrays in the order of the buffer."""
    codes = {parse(dtype): code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, offset = [], 0
    # Widest dtypes first keeps every tensor aligned, as the reference implementation does.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        array = tensors[name]
        if name == "__metadata__" or array.dtype not in codes:
            raise ModelFileError(
                f"{path}: cannot write {name!r} of dtype {array.dtype}; expected a name other than "
                f"'__metadata__' and one of {', '.join(DTYPES)} in little-endian order"
            )
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        arrays.append(array)
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return text + b" " * (-len(text) % 8), arrays


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
    """The path of a shard, which data names: it must not lead out of the folder.

    Links are followed only to inside of the folder, or, where the folder is a snapshot in a
    Hugging Face cache (`<cache>/models--org--name/snapshots/<commit>`), to the blobs of that
    model or to those that the whole cache shares.
    """
    parts = PureWindowsPath(shard)  # knows both separators, and drives
    if not shard or "\0" in shard or ".." in parts.parts or parts.drive or parts.root:
        raise ModelFileError(f"{folder / INDEX}: shard name {shard!r} leads out of the folder")
    path, root = folder / shard, folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed += [root.parents[1] / "blobs", root.parents[2] / "blobs"]
    if not any(path.resolve().is_relative_to(base) for base in allowed):
        raise ModelFileError(f"{path}: this shard is a link that leads out of the folder")
    return path


def _some(names: list[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "none"
