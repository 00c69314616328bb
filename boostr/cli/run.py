"""`boostr run`: one prompt, one answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from boostr.cli.messages import (
    DEFAULT_MODEL_SYSTEM,
    as_messages,
    has_template,
    read_stdin,
    system_prompt,
)
from boostr.cli.options import (
    ModelChoice,
    TemplateChoice,
    as_json,
    decoder_choice,
    sampling_options,
    template_choice,
)
from boostr.cli.output import print_json, timings_json, timings_line
from boostr.cli.types import TEXT
from boostr.engine.inputs import Chat
from boostr.engine.options import SamplingOptions
from boostr.engine.sequence import Timings, Usage
from boostr.errors import OptionError

if TYPE_CHECKING:
    from boostr.engine.model import LanguageModel


@click.command("run")
@click.argument("prompt", type=TEXT)
@decoder_choice
@sampling_options
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a chat template.")
@click.option(
    "--system", type=TEXT, metavar="TEXT",
    help=f"System prompt. [default: the chat template's own; of the default model "
    f"{DEFAULT_MODEL_SYSTEM!r}]",
)  # fmt: skip
@click.option(
    "--prefill", type=TEXT, metavar="TEXT", help="Begin the answer with this; the model goes on."
)
@template_choice
@as_json
def command(
    prompt: str,
    choice: ModelChoice,
    options: SamplingOptions,
    raw: bool,
    system: str | None,
    prefill: str | None,
    template: TemplateChoice,
    as_json: bool,
) -> None:
    """Answer PROMPT ("-" reads it from stdin), or continue it.

    A model with a chat template answers, unless --raw; one without continues. The answer goes to
    stdout as it comes, a line of timings to stderr.
    """
    chat = template.chat(continue_final_message=bool(prefill))
    if raw and (system is not None or chat != Chat()):
        raise click.UsageError(
            "--system, --prefill, --tools and --template-arg need the chat template that --raw "
            "turns off"
        )
    if prompt == "-":
        prompt = read_stdin()
        if not prompt:
            raise OptionError("stdin is empty: expected the prompt there")
    model, load_seconds = choice.load_decoder()
    request = _request(model, prompt, None if raw else chat, system, prefill)
    if as_json:
        print_json(_answer(model, request, options, load_seconds))
        return
    _stream(model, request, options)


def _request(
    model: LanguageModel, prompt: str, chat: Chat | None, system: str | None, prefill: str | None
) -> dict[str, Any]:
    """What `generate` and `stream` take: a prompt, or messages with what their template is given.

    `chat` is None where the prompt is to be continued as it is.
    """
    if chat is None or not has_template(model):
        if system is not None or chat not in (None, Chat()):
            raise OptionError(
                f"{model.source} has no chat template, which --system, --prefill, --tools and "
                "--template-arg are for"
            )
        return {"prompt": prompt}
    answer = [{"role": "assistant", "content": prefill}] if prefill else []
    turns = [{"role": "user", "content": prompt}, *answer]
    return {"messages": as_messages(system_prompt(model, system), *turns), **asdict(chat)}


def _answer(
    model: LanguageModel, request: dict[str, Any], options: SamplingOptions, load_seconds: float
) -> dict[str, Any]:
    done = model.generate(**request, options=options)
    return {
        "model": model.source,
        "backend": model.backend.device,
        **{key: request[key] for key in ("prompt", "messages") if key in request},
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
