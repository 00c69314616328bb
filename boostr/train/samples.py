"""Samples: rows of data as token ids and labels, and counts of what became of all others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr.engine.packed import IGNORED
from boostr.errors import DataError, OptionError
from boostr.io.encodings import encode_batch
from boostr.io.tokenizer import Tokenizer, required
from boostr.train.masks import LOSS_ON, Marked, Skipped, chat, completion
from boostr.train.records import Row

if TYPE_CHECKING:
    from tokenizers import Encoding

TOO_LONG = ("split", "truncate", "skip", "error")
NOTHING_COUNTS = "no token counts"
MESSAGE = "with a role and, if it says something, a text or parts as content"
CHUNK = 256  # rows, tokenized at once, on all cores
# kind of row -> its columns, of which a later kind may have those of an earlier one
_KINDS = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "tokens": ("input_ids",),
    "text": ("text",),
}
_LOSS_ON = {"messages": "assistant", "completion": "completion"}  # by default; else all


@dataclass(frozen=True)
class SampleOptions:
    """How rows become samples.

    Attributes:
        max_length: tokens of a sample.
        loss_on: "assistant" (of messages), "completion" (of prompts with one) or "all"; None: as
            the columns are.
        too_long: what becomes of longer ones: "split" into several, "truncate", "skip" or "error";
            None: texts and tokens are split, all others an error.
        prompts: of pairs: what is put before an anchor, and before all else.
    """

    max_length: int
    loss_on: str | None = None
    too_long: str | None = None
    prompts: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise OptionError(f"max_length must be 2 or more, got {self.max_length}")
        for name, known in (("loss_on", LOSS_ON), ("too_long", TOO_LONG)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, got {value!r}")


class Sample(NamedTuple):
    """Token ids int32 [T], and the label of each, itself or -100, int32 [T]."""

    ids: np.ndarray
    labels: np.ndarray


class Samples:
    """Makes samples of rows, and counts.

    Attributes:
        counts: "used", and by reason what was skipped, cut or split.
        examples: reason -> the first row it was the reason of, and what there is to say of it.
    """

    def __init__(self, tokenizer: Tokenizer | None, options: SampleOptions) -> None:
        self._tokenizer, self._options = tokenizer, options
        self.counts, self.examples = Counter[str](), dict[str, str]()

    def of(self, rows: Iterable[Row]) -> Iterator[Sample]:
        """The samples, in the order of the rows.

        Raises:
            DataError: columns of no kind, or of a wrong type; a row that is too long, if that is an
                error; in the end, if nothing was learned of any row.
        """
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, CHUNK)):
            marked = [self._marked(row) for row in chunk]
            encoded = iter(self._encoded([m for m in marked if isinstance(m, Marked)]))
            for row, own in zip(chunk, marked, strict=True):
                if own is not None:
                    sample = labelled(own, next(encoded)) if isinstance(own, Marked) else own
                    yield from self._fitted(sample, row)
        if not self.counts["used"]:
            raise DataError(f"nothing to learn: {self.summary()}")

    def summary(self) -> str:
        """Counts as a text, with an example of each."""
        return (
            "; ".join(
                f"{count} {reason}"
                + (f" ({self.examples[reason]})" if reason in self.examples else "")
                for reason, count in self.counts.items()
            )
            or "no rows"
        )

    def count(self, reason: str, where: str) -> None:
        """One more row that was skipped, cut or split, and where it is."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, where)

    def skip(self, skipped: Skipped, row: Row) -> None:
        """A row is not used, as `skipped` says."""
        detail = f": {skipped.detail}" if skipped.detail else ""
        self.count(skipped.reason, row.where + detail)

    def _marked(self, row: Row) -> Marked | Sample | None:
        """The text of a row with what counts, or its tokens; None if it is skipped."""
        kind = _kind(row)
        loss_on = self._options.loss_on or _LOSS_ON.get(kind, "all")
        if loss_on != "all" and loss_on != _LOSS_ON.get(kind):
            raise DataError(f"{row.where}: rows of {kind} have no {loss_on} that could count alone")
        columns = row.columns
        try:
            if kind == "tokens":
                return _tokens(row)
            tokenizer = required(self._tokenizer, row.where)
            if kind == "messages":
                return chat(tokenizer, columns["messages"], columns.get("tools"), loss_on)
            if kind == "completion":
                return completion(tokenizer, columns["prompt"], columns["completion"], loss_on)
            if not columns["text"].strip():
                raise Skipped("a text is empty")
            return Marked(columns["text"], None, special=True)
        except Skipped as skipped:
            self.skip(skipped, row)
            return None

    def _encoded(self, marked: list[Marked]) -> list[tuple[Encoding, int | None]]:
        """(tokens, the id that ends a text or None) of each."""
        found: list[Any] = [None] * len(marked)
        for special in (True, False):
            some = [i for i, own in enumerate(marked) if own.special is special]
            if some:
                tokenizer = required(self._tokenizer, "this data")
                end = tokenizer.special.names.get("eos_token") if special else None
                end_id = None if end is None else tokenizer.token_to_id(end)
                texts = [marked[i].text for i in some]
                made = encode_batch(tokenizer, texts, 2**62, special)
                for i, encoding in zip(some, made, strict=True):
                    found[i] = encoding, end_id
        return found

    def _fitted(self, sample: Sample, row: Row) -> Iterator[Sample]:
        """The sample, or what of it is not too long."""
        T, limit = len(sample.ids), self._options.max_length
        pieces = [sample]
        if limit < T:
            rule = self._options.too_long
            rule = rule or ("split" if _kind(row) in ("text", "tokens") else "error")
            if rule == "error":
                raise DataError(
                    f"{row.where}: {T} tokens, at most {limit} fit; raise max_length, or say what "
                    "becomes of such rows: too_long='truncate', 'skip' or 'split'"
                )
            if rule == "skip":
                self.count(f"longer than {limit} tokens", row.where)
                return
            self.count({"split": "split", "truncate": "truncated"}[rule], row.where)
            ends = range(0, T if rule == "split" else 1, limit)
            pieces = [Sample(*(part[i : i + limit] for part in sample)) for i in ends]
        for piece in pieces:
            if (piece.labels[1:] == IGNORED).all():  # the first token is nobody's target
                self.count(NOTHING_COUNTS, row.where)
            else:
                self.counts["used"] += 1
                yield piece


def labelled(marked: Marked, encoded: tuple[Encoding, int | None]) -> Sample:
    """Tokens with labels where some of their characters count: one that straddles does."""
    encoding, end = encoded
    ids = np.array(encoding.ids, np.int32)
    counts = np.ones(len(ids), bool)
    if marked.spans is not None:
        first, last = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        counts[:] = False
        for start, stop in marked.spans:
            counts |= (first < stop) & (last > start)
    if end is not None and (len(ids) == 0 or ids[-1] != end):
        ids, counts = np.append(ids, np.int32(end)), np.append(counts, True)
    return Sample(ids, np.where(counts, ids, np.int32(IGNORED)))


def _tokens(row: Row) -> Sample:
    ids = _whole_numbers(row, "input_ids")
    given = row.columns.get("labels") is not None
    labels = _whole_numbers(row, "labels") if given else ids
    if len(ids) == 0:
        raise Skipped("no tokens")
    if len(labels) != len(ids):
        raise DataError(
            f"{row.where}: labels must be as many as input_ids, {len(ids)}, got {len(labels)}"
        )
    for column, numbers in (("input_ids", ids), ("labels", labels[labels != IGNORED])):
        if (numbers < 0).any():
            raise DataError(f"{row.where}: {column} must be 0 or more, got {numbers.min()}")
    return Sample(ids, labels)


def _whole_numbers(row: Row, column: str) -> np.ndarray:
    try:
        array = np.asarray(row.columns[column])
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{row.where}: {column} must be a list of whole numbers")
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise DataError(f"{row.where}: {column} must be of 32 bits, got {array.max()}")
    return array.astype(np.int32)


def _kind(row: Row) -> str:
    """What a row is, by its columns.

    Raises:
        DataError: none of the kinds, or one that is not learned of here; a value of a wrong type.
    """
    columns = row.given
    kind = next((k for k, needed in _KINDS.items() if columns >= {*needed}), None)
    if kind is None:
        kinds = "; ".join(" and ".join(c) for c in _KINDS.values())
        raise DataError(
            f"{row.where}: expected columns {kinds}; got {', '.join(columns) or 'none'}. Pairs "
            "(anchor and positive) and preferences (prompt, chosen and rejected) have files of "
            "their own"
        )
    for name in _KINDS[kind]:
        value = row.columns[name]
        fits = kind != "messages" and isinstance(value, str)
        if kind != "tokens" and not (fits or (kind != "text" and is_chat(value))):
            what = {"text": "a text", "messages": f"a list of messages, each {MESSAGE}"}
            both = "a text or a list of messages, as the other column"
            raise DataError(
                f"{row.where}: {name} must be {what.get(kind, both)}, got {value!r:.80}"
            )
    if kind == "completion" and len({type(row.columns[c]) for c in _KINDS[kind]}) > 1:
        raise DataError(f"{row.where}: prompt and completion must both be texts, or both messages")
    return kind


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each `MESSAGE`."""
    return isinstance(value, list) and all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str | list | None)
        for m in value
    )
