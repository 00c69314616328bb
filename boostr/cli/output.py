"""What verbs print: JSON, sizes, timings. Answers go to stdout, everything about them to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from boostr.engine.sequence import Timings, Usage
from boostr.env import human_bytes as human_bytes


def print_json(value: Any) -> None:
    """One JSON value on stdout, in ASCII so that it parses under any locale."""
    click.echo(json.dumps(value))


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal: called after each step with (steps done, of how many, a word on it)."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=not sys.stderr.isatty()) as bar:

        def show(done: int, count: int, word: str) -> None:
            bar.total = count
            bar.set_postfix_str(word, refresh=False)
            bar.update(done - bar.n)

        yield show


def print_above_bar(line: str) -> None:
    """A line on stderr, above the bar where there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def timings_line(usage: Usage, timings: Timings) -> str:
    """One line for people."""
    prompt = f"{usage.prompt_tokens} prompt tokens"
    if timings.prompt_tokens_per_second:
        prompt += f" at {timings.prompt_tokens_per_second:.1f} tok/s"
    generated = f"{usage.completion_tokens} generated"
    if timings.decoded_tokens:
        generated += f" at {timings.decode_tokens_per_second:.1f} tok/s"
    return f"[{prompt}; {generated}; first token after {timings.first_token_seconds:.2f} s]"


def timings_json(timings: Timings, load_seconds: float) -> dict[str, float]:
    """Timings for programs; seconds and tokens per second."""
    return {
        "load_seconds": load_seconds,
        "prompt_seconds": timings.prompt_seconds,
        "first_token_seconds": timings.first_token_seconds,
        "decode_seconds": timings.decode_seconds,
        "prompt_tokens_per_second": timings.prompt_tokens_per_second,
        "decode_tokens_per_second": timings.decode_tokens_per_second,
    }


def human_count(count: float) -> str:
    """A number in thousands, millions or billions."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count:.0f}"


def human_time(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
