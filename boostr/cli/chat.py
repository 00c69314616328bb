"""`boostr chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys

import click

from boostr.cli import INTERRUPTED
from boostr.cli.conversation import Conversation
from boostr.cli.interrupts import StopOnInterrupt
from boostr.cli.options import (
    ModelChoice,
    TemplateChoice,
    decoder_choice,
    sampling_options,
    template_choice,
)
from boostr.cli.run import describe
from boostr.cli.types import TEXT
from boostr.engine.options import SamplingOptions
from boostr.errors import BoostrError

HELP = """/system TEXT  set the system prompt; without TEXT show it
/reset        forget the conversation
/exit         leave (also Ctrl-D)
/help         this text
Ctrl-C stops an answer; twice at the prompt it leaves."""


@click.command("chat")
@decoder_choice
@sampling_options
@click.option("--system", type=TEXT, metavar="TEXT", help="System prompt; /system changes it.")
@template_choice
@click.pass_context
def command(
    ctx: click.Context,
    choice: ModelChoice,
    options: SamplingOptions,
    system: str | None,
    template: TemplateChoice,
) -> None:
    """Talk with a model. /help lists the commands, Ctrl-C stops an answer.

    The model sees the whole conversation; once that is longer than its context, the oldest turns
    are dropped, with a notice.
    """
    model, _ = choice.load_decoder()
    conversation = Conversation(model, options, system, template.chat())
    _note(f"{model.source}. /help for help.")
    ctx.exit(_Terminal(conversation, choice.verbose).run())


class _Terminal:
    """The loop that reads lines and prints answers."""

    def __init__(self, conversation: Conversation, verbose: bool) -> None:
        self._conversation, self._verbose = conversation, verbose
        self._interactive = sys.stdin.isatty()
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(newline="\n")  # type: ignore[union-attr]  # \r alone ends no line
        if self._interactive:
            _edit_lines()

    def run(self) -> int:
        """Until the user leaves; returns the exit code."""
        interrupted = False
        while True:
            try:
                line = self._read().strip()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if interrupted:
                    return INTERRUPTED
                interrupted = True
                _note("\nCtrl-C once more or /exit to leave")
                continue
            interrupted = False
            if line in ("/exit", "/quit"):
                return 0
            try:
                self._obey(line)
            except BoostrError as error:
                _note(f"boostr: error: {error}")

    def _read(self) -> str:
        if self._interactive:
            line = input("> ")
        else:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
        if line.isascii():
            return line
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:
            _note("boostr: error: this line is not valid UTF-8")
            return ""
        return line

    def _obey(self, line: str) -> None:
        verb, _, text = line.partition(" ")
        if not line:
            return
        if verb == "/help":
            _note(HELP)
        elif verb == "/reset":
            self._conversation.reset()
            _note("the conversation starts anew")
        elif verb == "/system":
            if text:
                self._conversation.system = text.strip()
            _note(f"system prompt: {self._conversation.system or 'that of the chat template'}")
        elif verb.startswith("/") and verb[1:].isalpha():
            _note(f"no command {verb}; /help lists them")
        else:
            self._answer(line)

    def _answer(self, question: str) -> None:
        pieces = self._conversation.ask(question)
        if self._conversation.dropped:
            _note(
                f"(context is full: the oldest {self._conversation.dropped} messages are dropped)"
            )
        answer, count, timings = "", 0, None
        try:
            with StopOnInterrupt() as stop:
                for piece in pieces:
                    answer += piece.text
                    count += piece.token_id is not None
                    timings = piece.timings or timings
                    click.echo(piece.text, nl=False)
                    if stop.requested:
                        break
        except KeyboardInterrupt:  # the second Ctrl-C, while the first still waits for a token
            pass
        finally:
            click.echo()
            self._conversation.remember(answer)
        if self._verbose and timings is not None:
            _note(describe(count, timings))


def _edit_lines() -> None:
    """Arrow keys and history, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _note(text: str) -> None:
    click.echo(text, err=True)
