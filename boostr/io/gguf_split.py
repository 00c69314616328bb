"""GGUF models in several files, NAME-00001-of-00003.gguf: all parts as one.

The first part has the metadata, each a share of the tensors. Format: llama.cpp's gguf-split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile, GGUFTensor

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that the file `name` is a part of; alone if of none."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    return [f"{match['name']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


def first_parts(names: Iterable[str]) -> list[str]:
    """One name a model: of those in parts the first."""
    return sorted({part_names(name)[0] for name in names})


class GGUFParts:
    """The parts of a split model, with the interface of `GGUFFile`.

    Raises:
        ModelFileError: a part is missing or belongs to another model, or a tensor is there twice.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.path, self.paths = paths[0], paths
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ModelFileError(
                f"{self.path}: {len(missing)} of the {len(paths)} parts of this model are missing: "
                f"{', '.join(missing)}; they must lie in one folder"
            )
        self._files = [GGUFFile(path) for path in paths]
        self.version = self._files[0].version
        self.metadata: dict[str, Any] = self._files[0].metadata
        self.tensors: dict[str, GGUFTensor] = {}
        for number, file in enumerate(self._files):
            self._add(number, file)
        count = self.metadata.get("split.tensors.count", len(self.tensors))
        if count != len(self.tensors):
            raise ModelFileError(
                f"{self.path}: the parts hold {len(self.tensors)} tensors, expected {count}"
            )

    def _add(self, number: int, file: GGUFFile) -> None:
        says = (file.metadata.get("split.no"), file.metadata.get("split.count"))
        if says != (number, len(self.paths)):
            raise ModelFileError(
                f"{file.path}: expected part {number} (from 0) of {len(self.paths)}, the file says "
                f"that it is {says[0]} of {says[1]}"
            )
        twice = self.tensors.keys() & file.tensors.keys()
        if twice:
            raise ModelFileError(f"{file.path}: tensor {min(twice)!r:.200} is in another part too")
        self.tensors |= file.tensors

    def close(self) -> None:
        """Drops the maps; the memory goes when the last array taken from them does."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


GGUFSource = GGUFFile | GGUFParts


def open_gguf(path: str | Path) -> GGUFSource:
    """Opens a GGUF file, with all other parts of its model if it is one of several.

    Raises:
        ModelFileError: malformed or incomplete; names the file and what is wrong.
    """
    path = Path(path)
    file = GGUFFile(path)
    count = file.metadata.get("split.count", 1)
    if count in (0, 1):
        return file
    names = part_names(path.name)
    if len(names) != count:
        raise ModelFileError(
            f"{path}: this is one part of a model split into {count!r:.40} files; their names must "
            "be NAME-00001-of-0000N.gguf and so on, as they were downloaded"
        )
    return GGUFParts([path.with_name(name) for name in names])
