"""A conversation that stays within the model's context: what `boostr chat` remembers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from boostr.cli.messages import as_messages, has_template, system_prompt
from boostr.engine.inputs import Chat
from boostr.engine.options import SamplingOptions
from boostr.engine.sequence import Piece
from boostr.errors import OptionError

if TYPE_CHECKING:
    from boostr.engine.model import LanguageModel


class Conversation:
    """Turns of user and assistant, and a system prompt.

    Attributes:
        turns: messages so far, without the system prompt.   system: None is the template's own.
        dropped: how many of the oldest messages the last question pushed out.
    """

    def __init__(
        self,
        model: LanguageModel,
        options: SamplingOptions,
        system: str | None = None,
        chat: Chat | None = None,
    ) -> None:
        if not has_template(model):
            raise OptionError(f"{model.source} has no chat template; use: boostr run --raw")
        self._model, self._options, self._chat = model, options, chat or Chat()
        self.system = system_prompt(model, system)
        self.turns: list[dict[str, str]] = []
        self.dropped = 0

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()

    def ask(self, text: str) -> Iterator[Piece]:
        """The answer to a new question, a piece at a time, given all before it that fits.

        The question is remembered at once, the answer by `remember`. Where room is short, the
        oldest turns are dropped, so that a quarter of the context (or max_tokens) is left for the
        answer.

        Raises:
            OptionError: the question alone is too long; it is not remembered.
        """
        question = {"role": "user", "content": text}
        kept, room = [*self.turns, question], self._room()
        while len(kept) > 1 and self._count(kept) > room:
            del kept[:2]  # a question with its answer, so that the roles still alternate
        self.dropped = len(self.turns) + 1 - len(kept)
        pieces = self._model.stream(
            messages=as_messages(self.system, *kept),
            options=replace(self._options),
            **asdict(self._chat),
        )
        self.turns = kept
        return pieces

    def remember(self, answer: str) -> None:
        """Note the answer, or what was written of it. An empty one takes its question back."""
        if answer:
            self.turns.append({"role": "assistant", "content": answer})
        else:
            self.turns.pop()

    def _room(self) -> int:
        context = self._model.config.max_position_embeddings
        return context - min(self._options.max_tokens, context // 4)

    def _count(self, turns: list[dict[str, str]]) -> int:
        return len(self._model.encode(None, as_messages(self.system, *turns), self._chat))
