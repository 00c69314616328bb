"""`boostr classify`: labels of texts, or of the tokens in them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click

from boostr.cli.messages import given_texts
from boostr.cli.options import ModelChoice, as_json, task_model
from boostr.cli.output import print_json
from boostr.cli.types import TEXT


@click.command("classify")
@task_model
@click.argument("texts", metavar="TEXT...", type=TEXT, nargs=-1)
@click.option("--file", metavar="FILE", help='Texts, one a line; "-" is stdin.')
@as_json
def command(texts: tuple[str, ...], choice: ModelChoice, file: str | None, as_json: bool) -> None:
    """Print the labels of each TEXT with their scores, the likeliest first.

    MODEL has a classification head (sentiment, topics), or one that labels tokens (names, parts of
    speech): then what it found, with the characters from where to where.
    """
    chosen = given_texts(texts, file)
    model, load_seconds = choice.load()
    start = time.perf_counter()
    found = model.classify(chosen)
    seconds = time.perf_counter() - start
    rows = [_row(labels) for labels in found]
    if not as_json:
        for row in rows:
            click.echo("\t".join(_word(label) for label in row))
        return
    print_json(
        {
            "model": model.source,
            "backend": model.backend.device,
            "labels": rows,
            "timings": {"load_seconds": load_seconds, "classify_seconds": seconds},
        }
    )


def _row(labels: Any) -> list[dict[str, Any]]:
    """What `classify` gives for a text, of either kind, as a list of objects."""
    if isinstance(labels, dict):
        return [{"label": label, "score": score} for label, score in labels.items()]
    return [asdict(span) for span in labels]


def _word(label: dict[str, Any]) -> str:
    place = f" {label['start']}:{label['end']} {label['text']!r}" if "text" in label else ""
    return f"{label['label']} {label['score']:.6f}{place}"
