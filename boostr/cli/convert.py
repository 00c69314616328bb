"""`boostr convert`: a folder as a GGUF file, and the other way."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import click

from boostr.cli.options import as_json, option_errors_are_usage
from boostr.cli.output import human_bytes, print_json, progress_bar
from boostr.cli.types import DTYPE


@click.command("convert")
@click.argument("model", required=False)
@click.option("-o", "--out", required=True, metavar="OUT", help="What to make; must not exist.")
@click.option(
    "--type", "kind", metavar="TYPE",
    help="Of a file's matrices: F16, BF16, F32, Q8_0, Q4_0, Q4_K_M, Q5_K_M, Q6_K ... "
    "[default: as stored]",
)  # fmt: skip
@click.option(
    "--dtype", type=DTYPE, metavar="NAME",
    help="Of a folder: float32, float16, bfloat16. [default: as stored; bfloat16 if quantized]",
)  # fmt: skip
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use the cache only, never the network.")
@as_json
def command(
    model: str | None, out: str, kind: str | None, dtype: str | None, revision: str | None,
    offline: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL, a folder or org/name, as the GGUF file OUT.gguf; or a GGUF file as folder OUT.

    Tokenizer and chat template come along. Nothing is at OUT until all of it is.
    """
    from boostr.engine.convert import convert

    start = time.perf_counter()
    with option_errors_are_usage(), progress_bar("convert", "tensor") as show:
        path = convert(
            model, out, kind=kind, dtype=dtype, revision=revision, offline=offline or None,
            progress=show,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")))
    types = _types(path)
    if as_json:
        print_json({"path": str(path), "bytes": size, "types": types, "seconds": seconds})
        return
    counts = ", ".join(f"{count} {name}" for name, count in types.items())
    click.echo(f"{path}: {human_bytes(size)} ({counts}) in {seconds:.1f} s")


def _types(path: Path) -> Counter[str]:
    """How many matrices of a file or folder are of each type."""
    from boostr.io.gguf import GGUFFile
    from boostr.io.safetensors import open_safetensors

    if path.is_file():
        with GGUFFile(path) as file:
            return Counter(t.type for t in file.tensors.values() if len(t.shape) > 1)
    with open_safetensors(path) as files:
        return Counter(files.dtype(n).name for n in files.names if len(files.shape(n)) > 1)
