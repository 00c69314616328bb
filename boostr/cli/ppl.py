"""`boostr ppl`: the perplexity of a text."""

from __future__ import annotations

import time

import click

from boostr.cli.messages import read_text
from boostr.cli.options import ModelChoice, as_json, model_argument
from boostr.cli.output import print_json, progress_bar


@click.command("ppl")
@model_argument
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, allow_dash=True), required=True,
    metavar="FILE", help='UTF-8, taken as it is; "-" is stdin.',
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(4), default=512, show_default=True, metavar="N",
    help="Tokens of a chunk.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(1), metavar="N", help="The first N. [default: all]")
@as_json
def command(
    choice: ModelChoice, text: str, context: int, chunks: int | None, as_json: bool
) -> None:
    """Measure the perplexity of a text under MODEL: lower is better.

    The protocol is llama-perplexity's, so that the numbers can be compared: chunks of --context
    tokens, of which the second half counts. MODEL is a folder, .gguf file or org/name.
    """
    from boostr.engine.perplexity import perplexity

    words = read_text(text)
    model, load_seconds = choice.load_decoder()
    start = time.perf_counter()
    with progress_bar("ppl", "chunk") as show:
        found = perplexity(
            model, words, context=context, chunks=chunks,
            progress=lambda done, count, value: show(done, count, f"{value:.4f}"),
        )  # fmt: skip
    seconds = time.perf_counter() - start
    if not as_json:
        noun = "chunk" if found.chunks == 1 else "chunks"
        click.echo(
            f"perplexity {found.value:.4f} ± {found.error:.4f} ({found.chunks} {noun} of {context} "
            f"tokens, {found.token_count} of them count)"
        )
        return
    print_json(
        {
            "model": model.source,
            "backend": model.backend.device,
            "quantize": choice.quantize,
            "weight_bytes": model.weight_bytes,
            "perplexity": found.value,
            "error": found.error,
            "token_count": found.token_count,
            "chunks": found.chunks,
            "context": context,
            "running": list(found.running),
            "timings": {"load_seconds": load_seconds, "ppl_seconds": seconds},
        }
    )
