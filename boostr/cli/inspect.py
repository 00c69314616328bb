"""`boostr inspect`: what a model is, from its headers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from boostr.cli.forms import FormRow, forms_of
from boostr.cli.options import as_json
from boostr.cli.output import human_bytes, human_count, print_json

if TYPE_CHECKING:
    from boostr.cli.headers import Summary


@click.command("inspect")
@click.argument("model", required=False)
@click.option("--revision", metavar="REV", help="Branch, tag or commit in the cache.")
@click.option("--tensors", is_flag=True, help="List all tensors.")
@as_json
def command(model: str | None, revision: str | None, tensors: bool, as_json: bool) -> None:
    """Say what MODEL is: a folder, a .gguf or .safetensors file, or a model in the cache.

    Reads headers only, whatever the size of the file, and also of models that boostr cannot run.
    """
    from boostr.cli.headers import summarize

    if revision and model is None:
        raise click.UsageError("--revision needs a MODEL that it is a revision of")
    summary = summarize(model, revision)
    if as_json:
        print_json(_object(summary, tensors))
    else:
        _print(summary, tensors)


def _object(summary: Summary, tensors: bool) -> dict[str, Any]:
    values = asdict(summary)
    rows = values.pop("tensors")
    weights = [{k: v for k, v in row.items() if k != "scheme"} for row in values.pop("weights")]
    values |= {
        "runs": summary.refusal is None,
        "parameters": summary.parameters,
        "weight_bytes": summary.weight_bytes,
        "types": summary.types,
        "forms": [asdict(row) | {"bits": row.bits} for row in forms_of(summary.weights)],
        "tensor_count": len(rows),
    }
    return values | ({"tensors": rows, "weights": weights} if tensors else {})


def _print(summary: Summary, tensors: bool) -> None:
    architecture = summary.architecture or "unknown"
    if summary.quantization:
        architecture += f", quantized with {summary.quantization}"
    vocabulary = "" if summary.vocabulary is None else f", {summary.vocabulary} tokens"
    rows = {
        "model": summary.source,
        "format": f"{summary.format}, {human_bytes(summary.file_bytes)}",
        "architecture": architecture,
        "runs here": "yes" if summary.refusal is None else f"no: {summary.refusal}",
        "parameters": f"{human_count(summary.parameters)} in {len(summary.tensors)} tensors, "
        f"{human_bytes(summary.weight_bytes)}",
        **{name: str(value) for name, value in summary.sizes.items()},
        "context": str(summary.context or "not said"),
        "tokenizer": f"{summary.tokenizer}{vocabulary}" if summary.tokenizer else "none",
        "chat template": "yes" if summary.chat_template else "no",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:{width}}  {value}")
    click.echo(f"\n{'type':8} {'tensors':>8} {'parameters':>12} {'bytes':>12}")
    for kind, total in summary.types.items():
        click.echo(
            f"{kind:8} {total['tensors']:8} {human_count(total['parameters']):>12} "
            f"{human_bytes(total['bytes']):>12}"
        )
    _print_forms(forms_of(summary.weights))
    if tensors:
        held = {row.name: row.form for row in summary.weights}
        click.echo()
        for row in summary.tensors:
            form = f"  held as {held[row.name]}" if row.name in held else ""
            size = human_bytes(row.nbytes)
            click.echo(f"{row.name}  {row.type}  {list(row.shape)}  {size}{form}")


def _print_forms(forms: list[FormRow]) -> None:
    """What matrices are held as, and who computes with them; "composite" is slow, and right."""
    if not forms:
        return
    names = list(forms[0].kernels)
    width = max(len("held as"), *(len(row.form) for row in forms))
    title = f"{'held as':{width}} {'matrices':>8} {'bits each':>9} {'memory':>10}"
    click.echo(f"\n{title}  {'  '.join(f'{name:9}' for name in names)}".rstrip())
    for row in forms:
        runs = "  ".join(f"{_run(row.kernels[name]):9}" for name in names)
        line = f"{row.form:{width}} {row.weights:8} {row.bits:9.2f} {human_bytes(row.nbytes):>10}"
        click.echo(f"{line}  {runs}".rstrip())
    for row in forms:
        for name, reason in row.kernels.items():
            if reason is not None:
                click.echo(f"{row.form} on {name}: {reason}")


def _run(reason: str | None) -> str:
    return "kernels" if reason is None else "composite"
