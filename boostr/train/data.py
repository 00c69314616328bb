"""Dataset: samples that were tokenized once, mapped from a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from boostr import env
from boostr.errors import DataError
from boostr.io.disk import room_for
from boostr.io.scratch import scratch_beside
from boostr.io.tokenizer import Tokenizer
from boostr.train.groups import Groups, group_of
from boostr.train.records import files_of, rows_of
from boostr.train.samples import Sample, SampleOptions, Samples

_FORM = 3  # of the cache; another one is made anew
_IDS, _LABELS, _ENDS, _ABOUT = "ids.bin", "labels.bin", "ends.npy", "about.json"


class Dataset:
    """N samples of a split, in the order of its files. Made by `Dataset.open`.

    Attributes:
        kind: "sample"; "pair": anchor, positive and perhaps negative in turn; or "preference":
            chosen and rejected in turn.   width: how many samples in turn belong together.
        key: of the files' bytes, the tokenizer and the options: what resuming compares.
        counts: "used", and by reason what was skipped, cut or split.   examples: a row of each.
        ends: int64 [N + 1], where each sample begins among all tokens.
        largest: of the token ids and labels.
    """

    def __init__(self, folder: Path, name: str) -> None:
        about = json.loads((folder / _ABOUT).read_text())
        self.name, self.key = name, about["key"]
        self.kind: str = about["kind"]
        self.width: int = about["width"]
        self.counts: Mapping[str, int] = about["counts"]
        self.examples: Mapping[str, str] = about["examples"]
        self.largest: int = about["largest"]
        self.ends = np.load(folder / _ENDS)
        self._ids, self._labels = (np.memmap(folder / f, np.int32, "r") for f in (_IDS, _LABELS))

    @classmethod
    def open(
        cls,
        path: str | Path,
        tokenizer: Tokenizer | None,
        *,
        max_length: int,
        split: str = "train",
        loss_on: str | None = None,
        too_long: str | None = None,
        prompts: tuple[str, str] = ("", ""),
    ) -> Self:
        """The samples of a file or folder, which are tokenized unless they have been before.

        Rows have columns `text`; `messages` (and `tools`); `prompt` and `completion`, texts or
        messages; or `input_ids` (and `labels`). Or all rows have `anchor` (or `query`), `positive`
        and perhaps `negative`; or all have `prompt`, `chosen` and `rejected`. Files are jsonl,
        json, txt (a document each), npy (token ids) and parquet.

        Args:
            tokenizer: of the model; None where rows are tokens.
            split: "train", "valid" or "test", see `records.files_of`.
            max_length, loss_on, too_long, prompts: see `SampleOptions`.
        Raises:
            DataError: files that are malformed, a split that is not there, rows of no known kind,
                and data of which nothing can be learned.
            OptionError: an option that there is not.
            DiskFullError: no room in the cache.
        """
        options = SampleOptions(max_length, loss_on, too_long, prompts)
        files = files_of(path, split)
        if not files:
            raise DataError(f"{path}: there is no {split} split")
        key = _key(files, tokenizer, options)
        folder = cache_folder() / key
        if not (folder / _ABOUT).exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write(folder, key, files, tokenizer, options)
        return cls(folder, f"{path} ({split})")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Sample:
        """Views of sample `index`."""
        here = slice(*self.ends[index : index + 2]) if 0 <= index < len(self) else None
        if here is None:
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        return Sample(self._ids[here], self._labels[here])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each sample."""
        return np.diff(self.ends)


def cache_folder() -> Path:
    """Where tokenized data lies."""
    return env.cache_dir() / "datasets"


def _key(files: list[Path], tokenizer: Tokenizer | None, options: SampleOptions) -> str:
    about = [_FORM, dataclasses.asdict(options), [_digest(path) for path in files]]
    if tokenizer is not None:
        special = dataclasses.asdict(tokenizer.special)
        about += [tokenizer.inner.to_str(), special]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [path.suffix, hashlib.file_digest(file, "sha256").hexdigest()]


def _write(
    folder: Path, key: str, files: list[Path], tokenizer: Tokenizer | None, options: SampleOptions
) -> None:
    """Make a cache beside its place, and move it there: it is whole or not there."""
    rows = rows_of(files)
    first = list(itertools.islice(rows, 1))
    group = group_of(first[0]) if first else None
    samples = Groups(tokenizer, options, group) if group else Samples(tokenizer, options)
    size = sum(path.stat().st_size for path in files)  # tokens and labels take no less
    with room_for(folder, size), scratch_beside(folder) as scratch:
        made = scratch / "new"
        made.mkdir()
        lengths, largest = [], 0
        with (made / _IDS).open("wb") as ids, (made / _LABELS).open("wb") as labels:
            for sample in samples.of(itertools.chain(first, rows)):
                ids.write(sample.ids.tobytes())
                labels.write(sample.labels.tobytes())
                lengths.append(len(sample.ids))
                largest = max(largest, int(sample.ids.max()), int(sample.labels.max()))
        np.save(made / _ENDS, np.cumsum([0, *lengths], dtype=np.int64))
        kind, width = (group.kind, group.width) if group else ("sample", 1)
        about = {"key": key, "kind": kind, "width": width, "largest": largest}
        about |= {"counts": samples.counts, "examples": samples.examples}
        (made / _ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        try:
            made.rename(folder)
        except OSError:  # another run was first
            if not (folder / _ABOUT).exists():
                raise
