"""`boostr fuse`: a model with an adapter merged into its weights."""

from __future__ import annotations

import time

import click

from boostr.cli.options import as_json, option_errors_are_usage
from boostr.cli.output import human_bytes, print_json
from boostr.cli.types import DTYPE


@click.command("fuse")
@click.argument("model", required=False)
@click.option("--adapter", required=True, metavar="DIR", help="A low-rank adapter as peft's.")
@click.option("-o", "--out", required=True, metavar="OUT", help="What to make; must not exist.")
@click.option("--dequantize", is_flag=True, help="Let a packed base become floats.")
@click.option(
    "--dtype", type=DTYPE, metavar="NAME",
    help="Of the matrices: float32, float16, bfloat16. [default: as stored; bfloat16 if packed]",
)  # fmt: skip
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use the cache only, never the network.")
@as_json
def command(
    model: str | None, adapter: str, out: str, dequantize: bool, dtype: str | None,
    revision: str | None, offline: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL, a folder or org/name, with an adapter merged into its weights, to OUT.

    Tokenizer, chat template and settings are carried over. Nothing is at OUT until all of it is.
    """
    from boostr.engine.fuse import fuse

    start = time.perf_counter()
    with option_errors_are_usage():
        path = fuse(
            model, adapter, out, dequantize=dequantize, dtype=dtype, revision=revision,
            offline=offline or None,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in path.rglob("*"))
    if as_json:
        print_json({"path": str(path), "bytes": size, "seconds": seconds})
        return
    click.echo(f"{path}: {human_bytes(size)} in {seconds:.1f} s")
