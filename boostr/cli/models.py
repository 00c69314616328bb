"""`boostr models`: the families that run, and what each is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from boostr.cli.options import as_json
from boostr.cli.output import print_json

if TYPE_CHECKING:
    from boostr.models.traits import Traits


@click.command("models")
@click.argument("model_type", required=False)
@as_json
def command(model_type: str | None, as_json: bool) -> None:
    """List the families that boostr runs, by the `model_type` of a config.json; of MODEL_TYPE say
    more. What a family is are its defaults: a checkpoint may say otherwise (`boostr inspect`).
    """
    from boostr.models.traits import all_traits, text_parts, traits

    wrappers = text_parts()
    if model_type is not None:
        found = traits(wrappers.get(model_type, model_type))
        if as_json:
            print_json(asdict(found) | {"wrapper": model_type in wrappers})
        else:
            _print(found, model_type)
    elif as_json:
        print_json({"models": [asdict(row) for row in all_traits()], "text_parts": wrappers})
    else:
        _print_all(all_traits(), wrappers)


def _print_all(rows: list[Traits], wrappers: dict[str, str]) -> None:
    cells = [("model_type", "for", "GGUF", "")]
    cells += [(row.model_type, row.kind, ", ".join(row.gguf), row.about) for row in rows]
    cells += [(name, "generate", "", f"its text part, {text}") for name, text in wrappers.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    for row in cells:
        line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False))
        click.echo(f"{line}  {row[3]}".rstrip())


def _print(found: Traits, asked: str) -> None:
    if asked != found.model_type:
        click.echo(f"{asked}: its text part runs, {found.model_type}")
    click.echo(found.about)
    rows = {
        "for": found.kind,
        "GGUF": ", ".join(found.gguf) or "none",
        **{name: getattr(found, name) for name in ("block", "positions", "windows", "mlp", "head")},
        "keeps": found.state,
    }
    for name, value in rows.items():
        click.echo(f"{name:9}  {value}")
