"""`boostr pull`: a model into the cache."""

from __future__ import annotations

import click

from boostr.cli.options import ModelChoice, as_json, source_choice
from boostr.cli.output import human_bytes, print_json


@click.command("pull")
@click.argument("model", required=False)
@source_choice
@as_json
def command(choice: ModelChoice, as_json: bool) -> None:
    """Fetch MODEL (org/name, org/name:file.gguf, hf://org/name@revision) and print its path.

    Without MODEL it is the default model, SmolLM2-135M-Instruct. What is in the cache already is
    not fetched again; a folder or file is only looked at.
    """
    from boostr.io.hub import resolve, resolve_default

    offline = choice.offline or None
    if choice.model is None:
        found = resolve_default(offline=offline)
    else:
        found = resolve(choice.model, revision=choice.revision, offline=offline)
    if as_json:
        print_json({"path": str(found.path), "kind": found.kind, "source": found.source})
        return
    click.echo(str(found.path))
    click.echo(f"from {found.source}", err=True)
    if choice.verbose:
        files = [found.path] if found.path.is_file() else found.path.rglob("*")
        size = sum(f.stat().st_size for f in files if f.is_file())
        click.echo(f"{human_bytes(size)} on disk", err=True)
