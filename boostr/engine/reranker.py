"""Reranker: what models that score a query with a text share; and those that answer yes or no."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from boostr.engine.inputs import text_list
from boostr.engine.modules import Prompts, transformer_settings
from boostr.engine.options import number
from boostr.engine.sentence import ACTIVATIONS, Step, named_activation
from boostr.engine.text_model import Parts, TextModel
from boostr.errors import ModelFileError, OptionError
from boostr.io.settings import TABLES, Settings, read_settings
from boostr.io.tokenizer import required
from boostr.models.config import RawConfig
from boostr.nn.module import Module

CROSS_ENCODER = "CrossEncoder"
_SIGMOID = "torch.nn.Sigmoid"


@dataclass(frozen=True)
class Ranked:
    """A text of those that were ranked.

    Attributes:
        index: its place among them.   score: how well it answers; the higher the better.
    """

    index: int
    score: float
    text: str


@dataclass(frozen=True)
class Pairing:
    """How a query and a text become one input, and its logit a score; of a CrossEncoder folder.

    Attributes:
        prompts: to put before the query; for chat templates, the message of the system.
        activation: of the logits.
        template: variables of the chat template that has the roles "query" and "document"; None:
            the tokenizer puts both together.
        max_length: tokens of both with their special ones; None: as the tokenizer says.
        lower_case: both first.
    """

    prompts: Prompts = field(default_factory=Prompts)
    activation: Step = ACTIVATIONS["Sigmoid"]
    template: Mapping[str, Any] | None = None
    max_length: int | None = None
    lower_case: bool = False

    @classmethod
    def from_folder(cls, folder: Path, config: RawConfig) -> Pairing:
        """From what sentence-transformers wrote beside the model, and into its config.json.

        Raises:
            ModelFileError: a setting that is not known.
        """
        own = read_settings(folder / "config_sentence_transformers.json")
        if own.get("model_type", CROSS_ENCODER) != CROSS_ENCODER:
            raise ModelFileError(f"{own.source}: model_type must be {CROSS_ENCODER!r}")
        inner = transformer_settings(folder, f"{CROSS_ENCODER}/sentence_bert_config.json")
        chat = inner.get("processing_kwargs", {})
        template = {"restore_suffix": True, **chat.get("chat_template", {})}
        if chat.keys() - {"chat_template"} or template.pop("restore_suffix") is not True:
            raise ModelFileError(f"{inner.source}: processing_kwargs {chat!r:.80} is not supported")
        keys = Settings(config.raw, config.source, TABLES["config.json"])
        older = keys.get("sentence_transformers", {}).get("activation_fn")
        name = own.get("activation_fn") or older or keys.get("sbert_ce_default_activation_function")
        return cls(
            Prompts.from_settings(own),
            named_activation(name or _SIGMOID, f"{folder}: activation_fn"),
            template if "message" in inner.get("modality_config", {}) else None,
            inner.get("max_seq_length"),
            inner.get("do_lower_case", False),
        )


class Reranker(TextModel):
    """A model that scores pairs of a query and a text."""

    def __init__(self, parts: Parts, pairing: Pairing, head: Module | None = None) -> None:
        super().__init__(parts, pairing.max_length, head=head)
        self.pairing = pairing
        if pairing.lower_case and self.tokenizer is not None:
            self.tokenizer.lower_case()

    @abstractmethod
    def _logits(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
    ) -> np.ndarray:
        """Logits float32 [N, L] of token sequences."""

    def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        top_k: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> list[Ranked]:
        """The texts in the order in which they answer the query, the best first.

        Args:
            top_k: so many of them; default all.
            prompt_name: of the checkpoint's prompts; default: its default prompt, if it has one.
            prompt: a text to put before the query, instead; "" for none.

        Raises:
            OptionError: no list of texts, or a classifier of several labels.
        """
        chosen = text_list(texts, "rerank")
        asked = text_list([query], "rerank: query")[0]
        most = len(chosen)
        if top_k is not None:
            most = int(number("rerank: top_k", top_k, (1, float("inf"), True, False)))
        before = self.pairing.prompts.choose("rerank", prompt_name, prompt)
        if not chosen:
            return []
        logits = self._logits(*self._pairs(asked, chosen, before))
        if logits.shape[1] != 1:
            raise OptionError(
                f"rerank: {self.source} tells {logits.shape[1]} labels apart; a ranker has one"
            )
        scores = self.pairing.activation(logits)[:, 0]
        order = np.argsort(-scores, kind="stable")[:most]
        return [Ranked(int(i), float(scores[i]), chosen[i]) for i in order]

    def _pairs(
        self, query: str, texts: Sequence[str], before: str
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """Token ids and token types of the query with each text."""
        if self.pairing.template is not None:
            return [self._rendered(query, text, before) for text in texts], None
        found = self.encode([(before + query, text) for text in texts], "rerank")
        return [e.ids for e in found], self.token_types(found)

    def _rendered(self, query: str, text: str, before: str) -> list[int]:
        """Through the chat template; of what is too long the end of the text is left out."""
        ids = self._render(query, text, before)
        if len(ids) <= self.max_length:
            return ids
        tail = self._tail(before)
        return [*ids[: self.max_length - len(tail)], *tail]

    def _render(self, query: str, text: str, before: str) -> list[int]:
        tokenizer = required(self.tokenizer, self.source)
        messages = [{"role": "system", "content": before}] if before else []
        messages += [{"role": "query", "content": query}, {"role": "document", "content": text}]
        arguments = {"add_generation_prompt": False, **(self.pairing.template or {})}
        prompt = tokenizer.apply_chat_template(messages, **arguments)
        return tokenizer.encode(prompt, add_special_tokens=False)

    def _tail(self, before: str) -> list[int]:
        """What the template puts behind any text."""
        one, other = (self._render(text, text, before) for text in ("0", "1 2 3 4"))
        backwards = zip(reversed(one), reversed(other), strict=False)
        alike = list(takewhile(lambda pair: pair[0] == pair[1], backwards))
        return one[len(one) - len(alike) :]
