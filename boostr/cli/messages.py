"""From what the user typed to what a model is asked: text from stdin, system prompts, templates."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from boostr.errors import OptionError
from boostr.io import wheel_model
from boostr.io.hub import DEFAULT_MODEL
from boostr.io.tokenizer import required

if TYPE_CHECKING:
    from boostr.engine.model import LanguageModel

# The default model's template has a system prompt of its own, with which so small a model answers a
# plain prompt with an introduction of itself, in French. With this one it answers.
DEFAULT_MODEL_SYSTEM = "You are a helpful assistant."


def read_stdin() -> str:
    """All of stdin as UTF-8, without the newline that ends it."""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin is not valid UTF-8: byte {error.start} is {data[error.start]:#x}"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def read_text(path: str) -> str:
    """The text of a file ("-" is stdin). Its line ends stay: others would be another text."""
    with click.open_file(path, "rb") as file:
        data: bytes = file.read()  # type: ignore[assignment]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{path}: not valid UTF-8: byte {error.start} is {data[error.start]:#x}"
        ) from None


def read_lines() -> tuple[str, ...]:
    """The lines of stdin, which end in \\n or \\r\\n alone: texts may hold other separators."""
    return as_lines(read_stdin())


def as_lines(text: str) -> tuple[str, ...]:
    """The lines of a text, the newline that ends it apart."""
    lines = text.replace("\r\n", "\n").removesuffix("\n")
    return tuple(lines.split("\n")) if lines else ()


def given_texts(texts: tuple[str, ...], file: str | None) -> tuple[str, ...]:
    """The texts of a command line: its arguments, or the lines of a file ("-" is stdin)."""
    if texts and file is not None:
        raise click.UsageError("give texts or --file, not both")
    if file is None:
        if not texts:
            raise click.UsageError("give texts, or --file with one a line")
        return texts
    lines = as_lines(read_text(file))
    if not lines:
        raise OptionError(f"{file}: no lines")
    return lines


def has_template(model: LanguageModel) -> bool:
    """Whether the model came with a chat template."""
    return "default" in required(model.tokenizer, model.source).special.templates


def system_prompt(model: LanguageModel, wanted: str | None) -> str | None:
    """The system prompt to send: what was asked for, else the default model's, else none."""
    if wanted is not None or not has_template(model):
        return wanted
    names = (DEFAULT_MODEL.rpartition("/")[2], wheel_model.REQUIREMENT)
    return DEFAULT_MODEL_SYSTEM if any(name in model.source for name in names) else None


def as_messages(system: str | None, *turns: dict[str, str]) -> list[dict[str, str]]:
    """A conversation, with its system prompt if it has one."""
    return ([] if system is None else [{"role": "system", "content": system}]) + list(turns)
