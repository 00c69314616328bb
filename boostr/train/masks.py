"""Masks: the text of a row, and which of its characters a model is to learn to write.

An assistant's words are those in `{% generation %}` blocks of the chat template. A template without
them is asked turn by turn: what it gives for the messages before an answer must be how the whole
text begins, or nobody knows where the answer lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boostr.errors import TokenizerError
from boostr.io.tokenizer import Tokenizer

Span = tuple[int, int]
LOSS_ON = ("assistant", "completion", "all")


NO_PREFIX = (
    "the chat template gives for what comes before an answer another text than the whole begins "
    "with; add {% generation %} blocks to it, or count all tokens (loss_on='all')"
)


class Skipped(Exception):  # noqa: N818  (no error: it is counted)
    """A row of which nothing is learned.

    Attributes:
        reason: why, in words under which it is counted.   detail: what there is to add of this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Marked:
    """A text to be tokenized.

    Attributes:
        spans: the characters (start, end) that count; None for all.
        special: whether the tokenizer adds what it puts around a text, and the end behind it.
    """

    text: str
    spans: list[Span] | None
    special: bool


def chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    loss_on: str,
) -> Marked:
    """A conversation through the chat template; the assistant's turns count, or all.

    Raises:
        Skipped: nothing said, or nothing by an assistant; a template that fails on it, or does not
            show where turns end.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if any(_is_empty(message) for message in messages):
        raise Skipped("a message is empty")
    if not messages or (loss_on == "assistant" and not turns):
        raise Skipped("no message has the role assistant" if messages else "there are no messages")
    try:
        text, spans = tokenizer.chat_spans(messages, tools=tools)
        if any(isinstance(m.get("content"), list) and str(m["content"]) in text for m in messages):
            raise Skipped("the chat template takes texts as content, not parts of one")
        if loss_on == "all":
            return Marked(text, None, special=False)
        if spans is None:
            spans = [_turn(tokenizer, messages, tools, i, text) for i in turns]
    except TokenizerError as error:
        raise Skipped("the chat template fails", str(error)) from None
    return Marked(text, spans, special=False)


def _is_empty(message: Mapping[str, Any]) -> bool:
    """Whether somebody says nothing; results of tools and system prompts may be empty."""
    said = ("content", "tool_calls", "reasoning_content", "thinking", "reasoning")
    return message["role"] in ("user", "assistant") and not any(message.get(k) for k in said)


def _turn(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Any, index: int, text: str
) -> Span:
    """Where message `index` lies in the text of the conversation."""
    before, until = "", text
    if index:
        before = tokenizer.apply_chat_template(messages[:index], tools=tools)
    if index + 1 < len(messages):
        until, _ = tokenizer.chat_spans(messages[: index + 1], tools=tools)
    if not (text.startswith(before) and text.startswith(until) and len(before) < len(until)):
        raise Skipped(NO_PREFIX)
    return len(before), len(until)


def completion(tokenizer: Tokenizer, prompt: Any, completion: Any, loss_on: str) -> Marked:
    """A prompt and what follows it, both texts or both messages; what follows counts, or all.

    Raises:
        Skipped: as `chat`; a completion that is empty.
    """
    if not completion:
        raise Skipped("a completion is empty")
    if isinstance(prompt, str):
        spans = None if loss_on == "all" else [(len(prompt), len(prompt) + len(completion))]
        return Marked(prompt + completion, spans, special=True)
    whole = chat(tokenizer, [*prompt, *completion], None, "all")
    if loss_on == "all":
        return whole
    try:
        before = tokenizer.apply_chat_template(prompt)
    except TokenizerError as error:
        raise Skipped("the chat template fails", str(error)) from None
    if not whole.text.startswith(before):
        raise Skipped(NO_PREFIX)
    return Marked(whole.text, [(len(before), len(whole.text))], special=False)
