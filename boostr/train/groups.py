"""Groups: rows that are several samples, which belong together: pairs of texts, preferences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from boostr.engine.packed import IGNORED
from boostr.errors import DataError
from boostr.io.encodings import encode_batch
from boostr.io.tokenizer import Tokenizer, required
from boostr.train.masks import Marked, Skipped, completion
from boostr.train.records import Row
from boostr.train.samples import (
    CHUNK,
    NOTHING_COUNTS,
    Sample,
    SampleOptions,
    Samples,
    is_chat,
    labelled,
)

if TYPE_CHECKING:
    from tokenizers import Encoding

PAIR, PREFERENCE = "pair", "preference"
_COLUMNS = {
    ("prompt", "chosen", "rejected"): PREFERENCE,
    ("anchor", "positive"): PAIR,
    ("query", "positive"): PAIR,
}


class Group(NamedTuple):
    """What a row is: a pair or a preference, and the columns that it is made of."""

    kind: str
    columns: tuple[str, ...]

    @property
    def width(self) -> int:
        """Its samples: anchor, positive and perhaps negative; chosen and rejected."""
        return len(self.columns) - (self.kind == PREFERENCE)


def group_of(row: Row) -> Group | None:
    """The group that a row is by its columns; None if it is a sample by itself."""
    there = row.given
    for columns, kind in _COLUMNS.items():
        if there >= {*columns}:
            negative = ("negative",) if kind == PAIR and "negative" in there else ()
            return Group(kind, columns + negative)
    return None


class Groups(Samples):
    """Makes the samples of rows that are all of one group, `width` of each row in turn.

    A pair's texts are tokenized as `embed` does it, and cut if they are too long. Of preferences
    the answers count, and one that is too long is an error, unless `too_long` says otherwise.
    """

    def __init__(self, tokenizer: Tokenizer | None, options: SampleOptions, group: Group) -> None:
        super().__init__(tokenizer, options)
        self._group = group
        usual = "truncate" if group.kind == PAIR else "error"
        self._rule = options.too_long or usual
        if self._rule == "split":
            raise DataError(f"too_long: a {group.kind} cannot be split")
        if options.loss_on not in (None, "completion") or (options.loss_on and group.kind == PAIR):
            raise DataError(f"loss_on: of a {group.kind} there is no {options.loss_on}")

    def of(self, rows: Iterable[Row]) -> Iterator[Sample]:
        """See `Samples.of`."""
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, CHUNK)):
            marked = [self._parts(row) for row in chunk]
            encoded = iter(self._encoded([part for parts in marked for part in parts]))
            for row, parts in zip(chunk, marked, strict=True):
                samples = [labelled(part, next(encoded)) for part in parts]
                if samples and (kept := self._whole(samples, parts, row)):
                    self.counts["used"] += 1
                    yield from kept
        if not self.counts["used"]:
            raise DataError(f"nothing to learn: {self.summary()}")

    def _parts(self, row: Row) -> list[Marked]:
        """The texts of a row; none if it is skipped."""
        found = group_of(row)
        if found != self._group:
            other = ", ".join(row.given) or "none"
            raise DataError(
                f"{row.where}: all rows must be as the first, which has "
                f"{', '.join(self._group.columns)}; got {other}"
            )
        values = [row.columns[name] for name in self._group.columns]
        pair = self._group.kind == PAIR
        if not all(isinstance(v, str) for v in values) and (pair or not all(map(is_chat, values))):
            raise DataError(
                f"{row.where}: {', '.join(self._group.columns)} must all be texts"
                + ("" if pair else ", or all messages")
            )
        try:
            if not pair:
                prompt, *answers = values
                tokenizer = required(self._tokenizer, row.where)
                return [completion(tokenizer, prompt, own, "completion") for own in answers]
            if not all(text.strip() for text in values):
                raise Skipped("a text is empty")
            query, document = self._options.prompts
            befores = [query] + [document] * (len(values) - 1)
            texts = map("".join, zip(befores, values, strict=True))
            return [Marked(text, [], special=True) for text in texts]
        except Skipped as skipped:
            self.skip(skipped, row)
            return []

    def _encoded(self, marked: list[Marked]) -> list[tuple[Encoding, int | None]]:
        if self._group.kind == PREFERENCE:
            return super()._encoded(marked)
        tokenizer = required(self._tokenizer, "this data")
        found = encode_batch(tokenizer, [part.text for part in marked], 2**62)
        return [(encoding, None) for encoding in found]

    def _whole(self, samples: list[Sample], parts: list[Marked], row: Row) -> list[Sample]:
        """The samples of a row, none of which is too long any more; none if it is skipped."""
        limit, longest = self._options.max_length, max(len(sample.ids) for sample in samples)
        if longest > limit:
            if self._rule == "error":
                raise DataError(
                    f"{row.where}: {longest} tokens, at most {limit} fit; raise max_length, or say "
                    "what becomes of such rows: too_long='truncate' or 'skip'"
                )
            if self._rule == "skip":
                self.count(f"longer than {limit} tokens", row.where)
                return []
            self.count("truncated", row.where)
            samples = [self._cut(*pair) for pair in zip(samples, parts, strict=True)]
        if self._group.kind == PREFERENCE and any((s.labels[1:] == IGNORED).all() for s in samples):
            self.count(NOTHING_COUNTS, row.where)
            return []
        return samples

    def _cut(self, sample: Sample, part: Marked) -> Sample:
        limit = self._options.max_length
        if self._group.kind == PREFERENCE or len(sample.ids) <= limit:
            return Sample(sample.ids[:limit], sample.labels[:limit])
        tokenizer = required(self._tokenizer, "this data")
        (encoding,) = encode_batch(tokenizer, [part.text], limit)  # special tokens stay
        ids = np.array(encoding.ids, np.int32)
        return Sample(ids, np.full_like(ids, IGNORED))
