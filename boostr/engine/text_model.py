"""TextModel: what embedders, classifiers and rankers share: whole texts, packed into passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boostr.backends.base import Backend
from boostr.engine.loaded import Loaded
from boostr.engine.runner import Runner
from boostr.engine.text_passes import Compute, TextPasses
from boostr.errors import OptionError, TokenizerError
from boostr.io.encodings import Text, encode_batch
from boostr.io.tokenizer import Tokenizer, required
from boostr.models.base import Model
from boostr.nn.module import Module

if TYPE_CHECKING:
    from tokenizers import Encoding

_ENCODED = 512  # texts that are turned into tokens at once


@dataclass(frozen=True)
class Parts:
    """What every loaded model is made of.

    Attributes:
        tokenizer: None without tokenizer files: texts are refused.   source: where it came from.
    """

    module: Model
    tokenizer: Tokenizer | None
    backend: Backend
    source: str


class TextModel(Loaded):
    """A model of whole texts, no longer than `max_length` tokens; None: as the context holds.

    Attributes:
        tokenizer, config, backend, module, source: see `Parts`.
    """

    def __init__(
        self,
        parts: Parts,
        max_length: int | None = None,
        special_tokens: bool = True,
        head: Module | None = None,
    ) -> None:
        self.module, self.tokenizer = parts.module, parts.tokenizer
        self.backend, self.source = parts.backend, parts.source
        self.config = self.module.config
        self.runner, self._special_tokens = Runner(self.module, self.backend), special_tokens
        modules = [self.module] if head is None else [self.module, head]
        self._passes = TextPasses(self.runner, modules)
        context = self.config.max_position_embeddings
        declared = max_length or (self.tokenizer and self.tokenizer.max_length)
        self.max_length: int = min(context, declared or context)
        """Tokens of a text with its special ones; longer ones are cut."""

    def encode(self, texts: Sequence[Text], what: str, first: int = 0) -> list[Encoding]:
        """The tokens of texts or pairs, cut to `max_length`.

        Raises:
            OptionError: a text with nothing behind its `first` tokens, those of a prompt.
            TokenizerError: an id that the model has no row for.
        """
        return list(self.encoded(texts, what, first))

    def encoded(self, texts: Sequence[Text], what: str, first: int = 0) -> Iterator[Encoding]:
        """As `encode`, some texts at a time, when they are asked for."""
        tokenizer = required(self.tokenizer, self.source)
        for start in range(0, len(texts), _ENCODED):
            part = texts[start : start + _ENCODED]
            found = encode_batch(tokenizer, part, self.max_length, self._special_tokens)
            self._check(found, what, first, start)
            yield from found

    def _check(self, found: Sequence[Encoding], what: str, first: int, start: int) -> None:
        for index, encoding in enumerate(found, start):
            if len(encoding.ids) <= first:
                why = f"; the prompt before it has {first}, which leaves no room" if first else ""
                raise OptionError(f"{what}: texts[{index}] has no tokens to pool{why}")
            if max(encoding.ids) >= self.config.vocab_size:
                raise TokenizerError(
                    f"token id {max(encoding.ids)} is not in the model's vocabulary "
                    f"0..{self.config.vocab_size - 1}"
                )

    def token_types(self, found: Sequence[Encoding]) -> list[list[int]] | None:
        """The segment of each token; None where all are of the first, or the model has no types."""
        known = self.config.embedding.types
        if known is None:
            return None
        types = [encoding.type_ids for encoding in found]
        highest = max((max(own) for own in types), default=0)
        if highest >= known:
            raise TokenizerError(
                f"{self.source}: the tokenizer gives token type {highest}, the model has {known}"
            )
        return types if highest else None

    def rows(
        self,
        sequences: Iterable[Sequence[int]],
        compute: Compute,
        shape: tuple[int, int],
        types: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        """What is computed of each of N sequences, a row of numbers: float32 of this shape."""
        made = np.zeros(shape, np.float32)
        for group, computed in self._passes.over(sequences, compute, types):
            made[[index for index, _ in group]] = computed[: len(group)]
        return made

    def states(
        self,
        sequences: Iterable[Sequence[int]],
        compute: Compute,
        types: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(index, what is computed of its tokens, float32 [T, ...]) of each sequence, in any
        order."""
        for group, computed in self._passes.over(sequences, compute, types):
            ends = np.cumsum([len(ids) for _, ids in group])
            parts = np.split(computed, ends)[:-1]
            yield from zip((index for index, _ in group), parts, strict=True)
