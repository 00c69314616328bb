"""The `boostr` command: finds the verb, and turns every error into one message and an exit code.

Exit codes: 0 done, 1 failure, 2 wrong usage, 130 interrupted. Verbs are imported when they are
used, so that `boostr --help` is fast.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from boostr import __version__, env
from boostr.cli import INTERRUPTED
from boostr.cli.interrupts import exit_on_terminate
from boostr.errors import BoostrError

# verb -> what it does; the module of the same name in this package has it as `command`
VERBS = {
    "run": "Answer a prompt, or continue it.",
    "chat": "Talk with a model in the terminal.",
    "embed": "Turn texts into vectors.",
    "rerank": "Sort texts by how well they answer a query.",
    "classify": "Label texts, or the tokens in them.",
    "models": "List the families that boostr runs, and what each is.",
    "inspect": "Say what is in a model file, from its headers alone.",
    "pull": "Fetch a model into the cache.",
    "convert": "Write a folder as a GGUF file, for llama.cpp and its kin, or the other way.",
    "train": "Train an adapter, or a whole model, on data.",
    "fuse": "Write a copy of a model with an adapter merged into its weights.",
    "quantize": "Write a smaller copy of a model that other programs read too.",
    "ppl": "Measure how well a model predicts a text, as llama-perplexity does.",
    "bench": "Measure speed and memory, as llama-bench does.",
    "doctor": "Check this machine: versions, devices, a small computation on each.",
}


class Verbs(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"boostr.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:
        """Run the command line and exit. Nothing leaves this as a traceback."""
        _open_missing_streams()
        _tolerate_any_text()
        warnings.showwarning = _warn
        with exit_on_terminate():
            sys.exit(self._outcome(args))

    def _outcome(self, args: Sequence[str] | None) -> int:
        try:
            code = super().main(args, prog_name="boostr", standalone_mode=False)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except click.exceptions.Exit as done:
            return done.exit_code
        except click.exceptions.NoArgsIsHelpError as help_text:
            click.echo(help_text.format_message(), err=True)
            return help_text.exit_code
        except click.ClickException as error:
            return _usage(error)
        except (click.Abort, KeyboardInterrupt):
            return INTERRUPTED
        except BrokenPipeError:
            _close_stdout()
            return 1
        except BoostrError as error:
            return _fail("; ".join([str(error), *getattr(error, "__notes__", ())]))
        except OSError as error:
            return _fail(str(error))
        except MemoryError as error:
            return _fail(f"out of memory {error}".rstrip())
        except RecursionError:
            return _fail("the input is nested too deeply")
        except Exception as error:
            return _fail(
                f"unexpected {type(error).__name__}: {error} (a bug of boostr; BOOSTR_DEBUG=1 "
                "shows where)"
            )


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="boostr")
def app() -> None:
    """Transformers on any machine, without PyTorch."""


def main() -> NoReturn:
    """Run the command line and exit."""
    app.main()


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    if context is not None:
        click.echo(context.get_usage(), err=True)
        click.echo(f"Try '{context.command_path} -h' for help.", err=True)
    _say(error.format_message())
    return error.exit_code


def _fail(message: str) -> int:
    _say(message)
    if env.DEBUG.text() not in ("", "0"):
        traceback.print_exc()
    return 1


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"boostr: error: {message}", err=True)


def _open_missing_streams() -> None:
    """A daemon, or pythonw, may start a program without them: there is nothing to read or show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _warn(message: Warning | str, *details: Any) -> None:
    """In place of Python's, which says in which line of which file."""
    with contextlib.suppress(OSError):
        click.echo(f"boostr: warning: {message}", err=True)


def _tolerate_any_text() -> None:
    """A model may write what the terminal's encoding does not have: show it escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _close_stdout() -> None:
    """After a broken pipe: what is still buffered goes nowhere, without a message at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
