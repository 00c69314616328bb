"""AnswerReranker: a decoder that ranks by how likely its answer is yes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from boostr.engine.reranker import Pairing, Reranker
from boostr.engine.sentence import ACTIVATIONS
from boostr.engine.text_model import Parts
from boostr.errors import ModelFileError, OptionError
from boostr.io.settings import read_settings
from boostr.io.tokenizer import required
from boostr.models.base import Model
from boostr.models.heads import Classifier
from boostr.nn.batch import Batch
from boostr.ops import core
from boostr.tensor import Tensor


@dataclass(frozen=True)
class Answers:
    """What a decoder answers with: a score is the logit of `yes`, less that of `no`.

    Attributes:
        yes, no: tokens, or rows of `head`.   head: one of answers alone, as files of GGUF have it.
    """

    yes: int
    no: int | None = None
    head: Classifier | None = None

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

    def __init__(self, parts: Parts, pairing: Pairing, answers: Answers) -> None:
        super().__init__(parts, pairing, answers.head)
        self.answers, self._compute = answers, partial(_logits, self.module, answers)

    def _logits(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
    ) -> np.ndarray:
        return self.rows(sequences, self._compute, (len(sequences), 1))


def _logits(module: Model, answers: Answers, batch: Batch) -> Tensor:
    """[B, 1] of each text's answer."""
    yes, no, head = answers.yes, answers.no, answers.head
    if head is not None:
        logits = head(module.last_hidden_state(batch), batch)
    else:
        logits = module.head(core.take(module.hidden(batch), batch.last_tokens))
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


_FIELD = re.compile(r"\{(query|text|instruction)\}")


class QuestionReranker(AnswerReranker):
    """A decoder that is asked a `Question`; a prompt takes the place of its instruction."""

    def __init__(self, parts: Parts, question: Question, answers: Answers) -> None:
        pairing = Pairing(activation=ACTIVATIONS[question.activation])
        super().__init__(parts, pairing, answers)
        self.question = question

    @classmethod
    def by_name(cls, parts: Parts, name: str | None) -> QuestionReranker:
        """One that is asked by a row of QUESTIONS, and answers with tokens.

        Raises:
            OptionError: a name that there is not, or answers that are no tokens.
        """
        if name is None or name not in QUESTIONS:
            raise OptionError(
                f"rerank: {parts.source} does not say how it ranks; template must be one of "
                f"{list(QUESTIONS)}, got {name!r:.80}"
            )
        question, known = QUESTIONS[name], required(parts.tokenizer, parts.source)
        words = [word for word in (question.yes, question.no) if word is not None]
        ids = [known.encode(word, add_special_tokens=False) for word in words]
        if any(len(word) != 1 for word in ids):
            raise OptionError(
                f"rerank: {words}, the answers of {name!r}: no tokens of {parts.source}"
            )
        yes, *no = (word[0] for word in ids)
        return cls(parts, question, Answers(yes, no[0] if no else None))

    @classmethod
    def from_gguf(cls, parts: Parts, head: Classifier) -> QuestionReranker:
        """One whose file has the rows of yes and no, and as its template "rerank" what is asked.

        Raises:
            ModelFileError: a template without a place for the query or the text.
        """
        question, tokenizer = QUESTIONS["qwen3"], parts.tokenizer
        asked = tokenizer and tokenizer.special.templates.get("rerank")
        if asked is not None:
            if "{query}" not in asked or asked.count("{document}") != 1:
                raise ModelFileError(
                    f"{parts.source}: the template 'rerank' must have {{query}}, and once "
                    f"{{document}}, got {asked!r:.80}"
                )
            before, _, after = asked.partition("{document}")
            pieces = (before + "{text}", after)
            pieces = tuple(p.replace(question.instruction, "{instruction}") for p in pieces)
            question = replace(question, pieces=pieces, cut=0)
        return cls(parts, question, Answers(0, 1, head))

    def _pairs(
        self, query: str, texts: Sequence[str], before: str
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        question = self.question
        if before and not any("{instruction}" in piece for piece in question.pieces):
            raise OptionError(f"rerank: the question of {self.source} has no place for a prompt")
        return [self._asked(query, text, before or question.instruction) for text in texts], None

    def _asked(self, query: str, text: str, instruction: str) -> list[int]:
        question, tokenizer = self.question, required(self.tokenizer, self.source)
        fields = {"query": query, "text": text, "instruction": instruction}
        pieces = [
            tokenizer.encode(
                _FIELD.sub(lambda found: fields[found[1]], piece), add_special_tokens=False
            )
            for piece in question.pieces
        ]
        bos = [tokenizer.bos_id] if question.bos and tokenizer.bos_id is not None else []
        own = len(pieces[question.cut])
        room = self.max_length - len(bos) - sum(map(len, pieces)) + own
        if room < 1:
            raise OptionError(f"rerank: the query leaves no room for a text in {self.max_length}")
        pieces[question.cut] = pieces[question.cut][:room]
        return bos + [i for piece in pieces for i in piece]
