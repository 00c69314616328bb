"""`boostr embed`: texts to vectors."""

from __future__ import annotations

import time

import click
import numpy as np

from boostr.cli.messages import read_lines
from boostr.cli.options import ModelChoice, as_json, encoder_choice
from boostr.cli.output import print_json
from boostr.cli.types import TEXT
from boostr.errors import OptionError


@click.command("embed")
@click.argument("texts", metavar="TEXT...", type=TEXT, nargs=-1, required=True)
@encoder_choice
@click.option("--prompt-name", metavar="NAME", help="Of the model's prompts, before each text.")
@click.option("--prompt", type=TEXT, metavar="TEXT", help='Before each text; "" for none.')
@click.option("--truncate-dim", type=int, metavar="N", help="Keep N numbers of each vector.")
@as_json
def command(
    texts: tuple[str, ...],
    choice: ModelChoice,
    prompt_name: str | None,
    prompt: str | None,
    truncate_dim: int | None,
    as_json: bool,
) -> None:
    """Print the vectors of one or more TEXTs as a JSON list of lists.

    One "-" reads texts from stdin, one a line. The default model writes text and has no vectors, so
    that -m must be given. --json gives an object with the model beside the vectors.
    """
    if "-" in texts:
        if len(texts) > 1:
            raise click.UsageError('"-" reads the texts from stdin, give no other TEXT with it')
        texts = read_lines()
        if not texts:
            raise OptionError("stdin has no lines")
    model, load_seconds = choice.load()
    start = time.perf_counter()
    vectors = model.embed(texts, prompt_name=prompt_name, prompt=prompt, truncate_dim=truncate_dim)
    seconds = time.perf_counter() - start
    if not as_json:
        print_json(_numbers(vectors))
        return
    print_json(
        {
            "model": model.source,
            "backend": model.backend.device,
            "dimension": vectors.shape[1],
            "count": len(vectors),
            "embeddings": _numbers(vectors),
            "timings": {"load_seconds": load_seconds, "embed_seconds": seconds},
        }
    )


def _numbers(vectors: np.ndarray) -> list[list[float]]:
    """Numbers with the nine digits that a float32 needs, not the seventeen of its double."""
    return [[float(f"{value:.9g}") for value in row] for row in vectors.tolist()]
