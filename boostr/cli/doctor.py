"""`boostr doctor`: whether this machine is fit, and for what."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from boostr.cli.options import as_json
from boostr.cli.output import print_json
from boostr.cli.types import BACKEND


@click.command("doctor")
@click.option("--backend", type=BACKEND, metavar="NAME", help="Compute on this backend only.")
@as_json
@click.pass_context
def command(ctx: click.Context, backend: str | None, as_json: bool) -> None:
    """Check versions, processor, memory, cache and hub, and compute a little on every backend.

    PASS is well, WARN works with a drawback, FAIL does not, SKIP is not here. Exits 1 on a FAIL.
    """
    from boostr.cli.checks import FAIL, run_checks

    done = []
    for check in run_checks(backend):
        done.append(check)
        if not as_json:
            click.echo(f"{check.status}  {check.name:18} {check.detail}")
    counts = Counter(check.status for check in done)
    if as_json:
        print_json({"ok": not counts[FAIL], "checks": [asdict(check) for check in done]})
    else:
        found = ", ".join(f"{count} {status}" for status, count in counts.items())
        click.echo(found)
    ctx.exit(1 if counts[FAIL] else 0)
