"""`boostr run`: one prompt, one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from boostr.cli.messages import (
    DEFAULT_MODEL_SYSTEM,
    as_messages,
    has_template,
    read_stdin,
    system_prompt,
)
from boostr.cli.options import ModelChoice, as_json, model_choice, sampling_options
from boostr.cli.output import print_json, timings_json, timings_line
from boostr.cli.types import TEXT
from boostr.engine.options import SamplingOptions
from boostr.engine.sequence import Timings, Usage
from boostr.errors import OptionError

if TYPE_CHECKING:
    from boostr.engine.model import LanguageModel


@click.command("run")
@click.argument("prompt", type=TEXT)
@model_choice
@sampling_options
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a chat template.")
@click.option(
    "--system", type=TEXT, metavar="TEXT",
    help=f"System prompt. [default: the chat template's own; of the default model "
    f"{DEFAULT_MODEL_SYSTEM!r}]",
)  # fmt: skip
@as_json
def command(
    prompt: str,
    choice: ModelChoice,
    options: SamplingOptions,
    raw: bool,
    system: str | None,
    as_json: bool,
) -> None:
    """Answer PROMPT ("-" reads it from stdin), or continue it.

    A model with a chat template answers, unless --raw; one without continues. The answer goes to
    stdout as it comes, a line of timings to stderr.
    """
    if raw and system is not None:
        raise click.UsageError("--system needs the chat template that --raw turns off")
    if prompt == "-":
        prompt = read_stdin()
    model, load_seconds = choice.load_decoder()
    request = _request(model, prompt, raw, system)
    if as_json:
        print_json(_answer(model, request, options, load_seconds))
        return
    _stream(model, request, options)


def _request(model: LanguageModel, prompt: str, raw: bool, system: str | None) -> dict[str, Any]:
    """What `generate` and `stream` take: a prompt, or messages."""
    if raw or not has_template(model):
        if system is not None:
            raise OptionError(
                f"{model.source} has no chat template, so there is no --system for it"
            )
        return {"prompt": prompt}
    turn = {"role": "user", "content": prompt}
    return {"messages": as_messages(system_prompt(model, system), turn)}


def _answer(
    model: LanguageModel, request: dict[str, Any], options: SamplingOptions, load_seconds: float
) -> dict[str, Any]:
    done = model.generate(**request, options=options)
    return {
        "model": model.source,
        "backend": model.backend.device,
        **request,
        "text": done.text,
        "token_ids": done.token_ids,
        "finish_reason": done.finish_reason,
        "usage": {
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
            "total_tokens": done.usage.prompt_tokens + done.usage.completion_tokens,
        },
        "timings": timings_json(done.timings, load_seconds),
    }


def _stream(model: LanguageModel, request: dict[str, Any], options: SamplingOptions) -> None:
    count, timings = 0, None
    for piece in model.stream(**request, options=options):
        count += piece.token_id is not None
        click.echo(piece.text, nl=False)
        timings = piece.timings or timings
    click.echo()
    if timings is not None:
        click.echo(describe(count, timings), err=True)


def describe(generated: int, timings: Timings) -> str:
    """The line of timings of one answer."""
    return timings_line(Usage(timings.prompt_tokens, generated), timings)
