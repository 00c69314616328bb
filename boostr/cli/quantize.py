"""`boostr quantize`: a smaller copy of a model."""

from __future__ import annotations

import time

import click

from boostr.cli.messages import read_text
from boostr.cli.options import as_json, option_errors_are_usage
from boostr.cli.output import human_bytes, print_json, progress_bar
from boostr.cli.types import BACKEND, TABLE_SCHEME


@click.command("quantize")
@click.argument("model", required=False)
@click.option("-o", "--out", required=True, metavar="OUT", help="What to make; must not exist.")
@click.option(
    "--scheme", required=True, metavar="SCHEME",
    help="int8, int8-g32, -g64, -g128, w8a8, int4-g32, -g64, -g128, fp8 (compressed-tensors), nf4 "
    "(bitsandbytes), mlx:4, mlx:4-g32, mlx:8 ..., gguf:Q4_K_M, gguf:Q8_0 ... (a file).",
)  # fmt: skip
@click.option(
    "--quantize-embeddings", type=TABLE_SCHEME, metavar="SCHEME",
    help="For embedding and head; none keeps them, same is that of the others. [default: none, "
    "with 4 bits 8 bits where the format can]",
)  # fmt: skip
@click.option(
    "--calibrate", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="TEXT",
    help="A file of text; layers are rounded so that what they make of it changes least, and those "
    "of w8a8 made to read even inputs.",
)  # fmt: skip
@click.option(
    "--calibration-chunks", type=click.IntRange(1), default=32, show_default=True, metavar="N",
    help="Of 512 tokens, at most.",
)  # fmt: skip
@click.option("--backend", type=BACKEND, metavar="NAME", help="What rounds. [BOOSTR_BACKEND]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use the cache only, never the network.")
@as_json
def command(
    model: str | None, out: str, scheme: str, quantize_embeddings: str | bool | None,
    calibrate: str | None, calibration_chunks: int, backend: str | None, revision: str | None,
    offline: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a quantized copy of MODEL, a folder of float weights or org/name, to OUT.

    Tokenizer, chat template and settings are carried over. Nothing is at OUT until all of it is.
    """
    from boostr.engine.quantize import quantize

    text = None if calibrate is None else read_text(calibrate)
    start = time.perf_counter()
    with option_errors_are_usage(), progress_bar("quantize", "tensor") as show:
        found = quantize(
            model, out, scheme, quantize_embeddings=quantize_embeddings, calibrate=text,
            calibration_chunks=calibration_chunks, backend=backend, revision=revision,
            offline=offline or None, progress=show,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    if as_json:
        print_json(
            {
                "path": str(found.path),
                "scheme": scheme,
                "weight_bytes": found.weight_bytes,
                "source_bytes": found.source_bytes,
                "schemes": dict(found.schemes),
                "tables": dict(found.tables),
                "seconds": seconds,
            }
        )
        return
    counts = ", ".join(f"{count} {name}" for name, count in found.schemes.items())
    roles = ", ".join(f"{role} {name}" for role, name in found.tables.items())
    click.echo(
        f"{found.path}: {human_bytes(found.weight_bytes)} of {human_bytes(found.source_bytes)} "
        f"({counts}; {roles}) in {seconds:.1f} s"
    )
