"""ClassificationModel and TokenClassificationModel: labels of texts, and of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from boostr.engine.inputs import pair_list, text_list
from boostr.engine.packed import PackedBatch
from boostr.engine.reranker import Pairing, Reranker
from boostr.engine.sentence import ACTIVATIONS
from boostr.engine.text_model import Parts, TextModel
from boostr.errors import ModelFileError
from boostr.io.encodings import Text
from boostr.io.settings import TABLES, Settings
from boostr.models.base import Model
from boostr.models.config import RawConfig
from boostr.models.heads import Classifier
from boostr.nn.batch import Batch
from boostr.tensor import Tensor

_MULTI_LABEL, _REGRESSION = "multi_label_classification", "regression"
_PROBLEMS = ("single_label_classification", _MULTI_LABEL, _REGRESSION)


@dataclass(frozen=True)
class Labels:
    """What a classifier tells apart.

    Attributes:
        names: by the place of their logits.   problem: `problem_type` of the config.
    """

    names: tuple[str, ...]
    problem: str | None = None

    @classmethod
    def from_config(cls, config: RawConfig) -> Labels:
        """`id2label`, or names made of `num_labels`.

        Raises:
            ModelFileError: labels that are not numbered from 0, or that have the same name.
        """
        keys = Settings(config.raw, config.source, TABLES["config.json"])
        count = keys.get("num_labels", 2)
        named = keys.get("id2label", {str(i): f"LABEL_{i}" for i in range(count)})
        names = tuple(str(named.get(str(i))) for i in range(len(named)))
        if named.keys() != {str(i) for i in range(len(named))} or len({*names}) != len(named):
            raise ModelFileError(
                f"{config.source}: id2label must map 0, 1 ... to different names, got {named!r:.80}"
            )
        problem = keys.get("problem_type")
        if problem not in (None, *_PROBLEMS):
            raise ModelFileError(
                f"{config.source}: problem_type must be one of {_PROBLEMS}, got {problem!r}"
            )
        return cls(names, problem)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """What transformers' pipeline makes of logits [N, L]."""
        if self.problem == _REGRESSION:
            return logits
        if self.problem == _MULTI_LABEL or len(self.names) == 1:
            return ACTIVATIONS["Sigmoid"](logits)
        return softmax(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, L]."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


class ClassificationModel(Reranker):
    """A model with a classification head over its pooled states. Made by `boostr.load`.

    Attributes beside `TextModel`'s:
        labels: what it tells apart.
    """

    is_a = "a classifier of texts"
    classifier: Classifier

    def __init__(
        self, parts: Parts, classifier: Classifier, labels: Labels, pairing: Pairing
    ) -> None:
        super().__init__(parts, pairing, classifier)
        self.classifier, self.labels = classifier, labels
        self._compute = partial(_logits, self.module, classifier)

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits float32 [B, L] of sequences of token ids, on the tape."""
        return self._compute(self.upload(batch))

    def classify(self, texts: Iterable[Text]) -> list[dict[str, float]]:
        """Label -> score of each text or pair of texts, the likeliest first.

        Scores are probabilities of all labels together, or of each by itself where the config's
        `problem_type` says so, or there is one; of a regression they are its values.
        """
        scores = self.labels.scores(self.logits(texts))
        return [
            {self.labels.names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")}
            for row in scores
        ]

    def logits(self, texts: Iterable[Text]) -> np.ndarray:
        """Logits float32 [N, L] of texts or pairs, in the order of `labels`."""
        found = self.encode(pair_list(texts, "classify"), "classify")
        return self._logits([e.ids for e in found], self.token_types(found))

    def _logits(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
    ) -> np.ndarray:
        if self.classifier.reads_last:
            sequences = [self._unpadded(ids) for ids in sequences]
        return self.rows(sequences, self._compute, (len(sequences), len(self.labels.names)), types)

    def _unpadded(self, ids: Sequence[int]) -> Sequence[int]:
        """Without the pad tokens at its end, which transformers passes over, the first apart."""
        pad = self.config.extra.get("pad_token_id")
        end = len(ids)
        while end > 1 and ids[end - 1] == pad:
            end -= 1
        return ids[:end]


@dataclass(frozen=True)
class Span:
    """A labelled piece of a text.

    Attributes:
        start, end: characters of the text, of which it is `text[start:end]`.
        score: mean probability of the label over its tokens.
    """

    label: str
    score: float
    start: int
    end: int
    text: str


class TokenClassificationModel(TextModel):
    """A model that labels every token (names, parts of speech). Made by `boostr.load`."""

    is_a = "a classifier of tokens"

    def __init__(self, parts: Parts, classifier: Classifier, labels: Labels) -> None:
        super().__init__(parts, head=classifier)
        self.classifier, self.labels = classifier, labels
        self._compute = partial(_logits, self.module, classifier)

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits float32 [T, L] of the tokens of sequences of ids, on the tape."""
        return self._compute(self.upload(batch))

    def classify(self, texts: Iterable[str], *, join: bool = True) -> list[list[Span]]:
        """The labelled spans of each text.

        Args:
            join: tokens of one entity become one span, whose label has no B- or I-, and those
                labelled "O" are left out (transformers' "simple"); otherwise every token is one.
        """
        chosen = text_list(texts, "classify")
        found = self.encode(chosen, "classify")
        ids, spans = [e.ids for e in found], [[] for _ in chosen]
        for i, logits in self.states(ids, self._compute, self.token_types(found)):
            tokens = list(self._tokens(chosen[i], found[i], softmax(logits)))
            spans[i] = _joined(chosen[i], tokens) if join else tokens
        return spans

    def _tokens(self, text: str, encoding: Any, scores: np.ndarray) -> Iterator[Span]:
        """The likeliest label of every token that is not a special one."""
        for row, (start, end), special in zip(
            scores, encoding.offsets, encoding.special_tokens_mask, strict=True
        ):
            best = int(row.argmax())
            if not special:
                yield Span(self.labels.names[best], float(row[best]), start, end, text[start:end])


def _logits(module: Model, classifier: Classifier, batch: Batch) -> Tensor:
    """Of each text, or of each token."""
    return classifier(module.last_hidden_state(batch), batch)


def _joined(text: str, tokens: Sequence[Span]) -> list[Span]:
    """Runs of tokens with the same label; B- begins a new one."""
    runs: list[tuple[str, list[Span]]] = []
    for token in tokens:
        begins, name = token.label.startswith("B-"), token.label.removeprefix("B-")
        name = name.removeprefix("I-") if not begins else name
        if runs and runs[-1][0] == name and not begins:
            runs[-1][1].append(token)
        else:
            runs.append((name, [token]))
    return [
        Span(name, sum(t.score for t in run) / len(run), run[0].start, run[-1].end,
             text[run[0].start : run[-1].end])
        for name, run in runs
        if name != "O"
    ]  # fmt: skip
