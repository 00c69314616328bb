"""What callers pass as prompts, token ids and texts: checked, and brought to plain lists."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boostr.errors import OptionError
from boostr.io.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Chat:
    """What a chat template takes beside the messages.

    Attributes:
        tools: functions that it may offer, as JSON schemas.
        continue_final_message: the last message is to be continued, not answered; a key of it,
            such as "reasoning_content", says where.
        template_arguments: further variables, such as enable_thinking.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    continue_final_message: bool | str = False
    template_arguments: Mapping[str, Any] | None = None

    def render(self, tokenizer: Tokenizer, messages: Messages) -> str:
        """The prompt text of a conversation.

        Raises:
            OptionError: an argument of a wrong type.   TokenizerError: see `apply_chat_template`.
        """
        for name, value in (("messages", messages), ("tools", self.tools or ())):
            if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
                raise OptionError(f"{name} must be a list of dicts, got {type(value).__name__}")
        if not messages:
            raise OptionError("messages: expected at least one message")
        arguments = {} if self.template_arguments is None else self.template_arguments
        own = ("messages", "tools", "add_generation_prompt", "continue_final_message", "template")
        if not isinstance(arguments, Mapping) or any(
            not isinstance(name, str) or name in own for name in arguments
        ):
            raise OptionError(
                "template_arguments must map names of variables to values, without "
                f"{', '.join(own)}; got {arguments!r:.80}"
            )
        return tokenizer.apply_chat_template(
            messages,
            tools=self.tools,
            continue_final_message=self.continue_final_message,
            **arguments,
        )


def id_list(value: Any, what: str = "prompt") -> list[int]:
    """Token ids out of a list, a tuple or an array [T] of whole numbers.

    Raises:
        OptionError: anything else; `what` names it.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise OptionError(
                f"{what}: expected the token ids of one sequence [T], got an array of shape "
                f"{value.shape}"
            )
        value = value.tolist()
    if is_messages(value):
        raise OptionError(f"{what}: got messages; pass them as messages=")
    if isinstance(value, bytes | Mapping) or not isinstance(value, Sequence | range):
        a_text = "a text or " if what == "prompt" else ""
        raise OptionError(
            f"{what}: expected {a_text}a list of token ids, got {type(value).__name__}"
        )
    if set(map(type, value)) == {int}:  # at once, as prompts are long
        return list(value)
    return [_token_id(item, what) for item in value]


def _token_id(item: Any, what: str) -> int:
    try:
        if isinstance(item, bool | np.bool_):
            raise TypeError
        return operator.index(item)
    except TypeError:
        raise OptionError(f"{what}: token ids must be whole numbers, got {item!r:.80}") from None


def is_messages(value: Any) -> bool:
    """Whether this is a conversation: a list that begins with a mapping."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def of_types(call: str, kinds: Mapping[str, tuple[type, ...]], values: Mapping[str, Any]) -> None:
    """Checks arguments against their types; None is a type of those that may be left out.

    Raises:
        OptionError: the first that is of none of its types.
    """
    for name, types in kinds.items():
        value = bool(values[name]) if isinstance(values[name], np.bool_) else values[name]
        if not isinstance(value, types):
            names = " or ".join("None" if t is type(None) else t.__name__ for t in types)
            raise OptionError(f"{call}: {name} must be {names}, got {value!r:.80}")


def prompt_list(prompts: Any) -> list[Any]:
    """The prompts of a batch.

    Raises:
        OptionError: one prompt in place of a list of them.
    """
    one = "a text" if isinstance(prompts, str) else None
    if is_messages(prompts):
        one = "one conversation"
    elif isinstance(prompts, np.ndarray) and prompts.ndim == 1 and prompts.dtype.kind in "iu":
        one = "the token ids of one prompt"
    if one is not None:
        raise OptionError(
            f"generate_batch: expected a list of prompts, got {one}; put it in a list"
        )
    if isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
        raise OptionError(
            f"generate_batch: expected a list of prompts, got {type(prompts).__name__}"
        )
    return list(prompts)


def text_list(texts: Any, what: str) -> list[str]:
    """Texts out of a list, a tuple, an array or an iterator of them.

    Raises:
        OptionError: one text in place of a list, or an item that is no text.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        got = "one text" if isinstance(texts, str) else type(texts).__name__
        raise OptionError(f"{what}: expected a list of texts, got {got}")
    found = list(texts)
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise OptionError(f"{what}: texts[{index}] must be a str, got {type(text).__name__}")
    return found


def pair_list(texts: Any, what: str) -> list[str | tuple[str, str]]:
    """Texts, or pairs of them, out of a list, a tuple, an array or an iterator.

    Raises:
        OptionError: one text in place of a list, or an item that is neither text nor pair.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        return [*text_list(texts, what)]
    found: list[str | tuple[str, str]] = []
    for index, item in enumerate(texts):
        parts = tuple(item) if isinstance(item, list | tuple) else (item,)
        if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            raise OptionError(
                f"{what}: texts[{index}] must be a str or a pair of them, got {item!r:.80}"
            )
        found.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
    return found
