"""AnswerReranker: a decoder that ranks by how likely its answer is yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boostr.backends.base import Backend
from boostr.engine.reranker import Pairing, Reranker
from boostr.engine.sentence import ACTIVATIONS
from boostr.errors import ModelFileError, OptionError
from boostr.io.settings import read_settings
from boostr.io.tokenizer import Tokenizer, required
from boostr.models.base import Model
from boostr.nn.batch import Batch
from boostr.ops import core
from boostr.tensor import Tensor


@dataclass(frozen=True)
class Answers:
    """The tokens that a decoder answers with: a score is the logit of `yes`, less that of `no`."""

    yes: int
    no: int | None = None

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int) -> Answers:
        """From config.json of sentence-transformers' module LogitScore."""
        config = read_settings(folder / "config.json", "LogitScore/config.json")
        yes, no = config.get("true_token_id"), config.get("false_token_id")
        if yes is None or not all(0 <= i < vocab_size for i in (yes, no or 0)):
            raise ModelFileError(
                f"{config.source}: true_token_id and false_token_id must be of 0..{vocab_size - 1}"
            )
        return cls(yes, no)


class AnswerReranker(Reranker):
    """A decoder that is asked whether a text answers a query. Made by `boostr.load`."""

    is_a = "a decoder that ranks texts"

    def __init__(
        self,
        module: Model,
        tokenizer: Tokenizer | None,
        backend: Backend,
        source: str,
        pairing: Pairing,
        answers: Answers,
    ) -> None:
        super().__init__(module, tokenizer, backend, source, pairing)
        self.answers = answers

    def _logits(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
    ) -> np.ndarray:
        logits = np.zeros((len(sequences), 1), np.float32)
        for group, computed in self.passes(sequences, self._compute):
            logits[group] = computed
        return logits

    def _compute(self, batch: Batch) -> Tensor:
        last = core.take(self.module.hidden(batch), batch.cu_seqlens[1:] - 1)
        logits, (yes, no) = self.module.head(last), (self.answers.yes, self.answers.no)
        chosen = logits[:, yes : yes + 1]
        return chosen if no is None else chosen - logits[:, no : no + 1]


@dataclass(frozen=True)
class Question:
    """How a decoder is asked, where its folder does not say it.

    Attributes:
        pieces: of the prompt, each turned into tokens by itself, with {instruction}, {query} and
            {text}.   cut: which of them loses its end where all are too long.
        yes, no: tokens of the answers, as texts.   activation: of ACTIVATIONS.
        instruction: what is asked for, unless another is given.
        bos: whether the tokens begin with the tokenizer's BOS.
    """

    pieces: tuple[str, ...]
    cut: int
    yes: str
    no: str | None
    activation: str
    instruction: str
    bos: bool = False


# Sources: the model cards of Qwen3-Reranker and bge-reranker-v2-gemma.
QUESTIONS = {
    "qwen3": Question(
        (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
            "<|im_end|>\n<|im_start|>user\n",
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        1, "yes", "no", "Sigmoid",
        "Given a web search query, retrieve relevant passages that answer the query",
    ),
    "bge": Question(
        ("A: {query}", "\n", "B: {text}", "\n", "{instruction}"),
        2, "Yes", None, "Identity",
        "Given a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'.",
        bos=True,
    ),
}  # fmt: skip


class QuestionReranker(AnswerReranker):
    """A decoder that is asked by one of QUESTIONS; a prompt takes the place of its instruction."""

    def __init__(
        self,
        module: Model,
        tokenizer: Tokenizer | None,
        backend: Backend,
        source: str,
        name: str | None,
    ) -> None:
        if name is None or name not in QUESTIONS:
            raise OptionError(
                f"rerank: {source} does not say how it ranks; template must be one of "
                f"{list(QUESTIONS)}, got {name!r:.80}"
            )
        question, known = QUESTIONS[name], required(tokenizer, source)
        words = [word for word in (question.yes, question.no) if word is not None]
        ids = [known.encode(word, add_special_tokens=False) for word in words]
        if any(len(word) != 1 for word in ids):
            raise OptionError(f"rerank: {words}, the answers of {name!r}: no tokens of {source}")
        answers = Answers(*(word[0] for word in ids))
        pairing = Pairing(activation=ACTIVATIONS[question.activation])
        super().__init__(module, tokenizer, backend, source, pairing, answers)
        self.question = question

    def _pairs(
        self, query: str, texts: Sequence[str], before: str
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        return [
            self._asked(query, text, before or self.question.instruction) for text in texts
        ], None

    def _asked(self, query: str, text: str, instruction: str) -> list[int]:
        question, tokenizer = self.question, required(self.tokenizer, self.source)
        fields = {"query": query, "text": text, "instruction": instruction}
        pieces = [
            tokenizer.encode(piece.format(**fields), add_special_tokens=False)
            for piece in question.pieces
        ]
        bos = [tokenizer.bos_id] if question.bos and tokenizer.bos_id is not None else []
        own = len(pieces[question.cut])
        room = self.max_length - len(bos) - sum(map(len, pieces)) + own
        if room < 1:
            raise OptionError(f"rerank: the query leaves no room for a text in {self.max_length}")
        pieces[question.cut] = pieces[question.cut][:room]
        return bos + [i for piece in pieces for i in piece]
