"""Schemes of quantization against perplexity, size, memory and speed: a table, and a picture.

    python benchmarks/quant_table.py MODEL --text FILE [--chunks 8] [--schemes int8,int4-g64]
        [--files A.gguf B ...] [--backend numpy] [--repetitions 3] [--picture error.svg]

Every row is a process of `boostr ppl` and one of `boostr bench` (pp512, tg64, peak memory). MODEL
is the reference, a folder of float weights or a GGUF file; schemes are made of it at load, files
and folders are read as they are. `--repetitions 0` leaves speed out, for a machine that has other
work; all else is the same there. The picture (with matplotlib) has the error against the size: rows
on the line are such that no other is both smaller and better. Numbers of a table are from one
machine in one run: rows of two runs are not to be compared in speed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCHEMES = (
    "int8", "int8-g32", "int8-g128", "w8a8", "fp8", "int4-g32", "int4-g64", "int4-g128", "nf4",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One form of the model.

    Attributes:
        perplexity, error: of the text.   weight_bytes, peak_bytes: of weights, of the process.
        prompt, decode: tokens a second; None if they were not measured.
    """

    name: str
    perplexity: float
    error: float
    weight_bytes: int
    parameters: int
    peak_bytes: int | None
    prompt: float | None
    decode: float | None

    @property
    def bits(self) -> float:
        return 8 * self.weight_bytes / self.parameters


def boostr(*args: str) -> list[dict]:
    """What a command prints with --json, as a list."""
    command = [sys.executable, "-m", "boostr", *args, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def measured(name: str, model: str, options: list[str], arguments: argparse.Namespace) -> Row:
    """A row; it takes a minute or more."""
    common = [*options, *(["--backend", arguments.backend] if arguments.backend else [])]
    text = ["--text", arguments.text, "--chunks", str(arguments.chunks)]
    (ppl,) = boostr("ppl", model, *text, *common)
    timed = arguments.repetitions > 0
    new = 64 if timed else 1
    speed = ["-p", "512", "-n", str(new), "-r", str(max(arguments.repetitions, 1))]
    bench = {row["n_gen"]: row for row in boostr("bench", "-m", model, *speed, *common)}
    row = Row(
        name, ppl["perplexity"], ppl["error"], ppl["weight_bytes"], bench[new]["parameters"],
        bench[new]["peak_bytes"], *(bench[n]["avg_ts"] if timed else None for n in (0, new)),
    )  # fmt: skip
    print(f"{name}: {row.perplexity:.4f}", file=sys.stderr)
    return row


def table(rows: list[Row]) -> str:
    """Markdown; changes of perplexity are those to the first row."""
    timed = rows[0].decode is not None
    heads = ["weights", "bits a weight", "perplexity", "change", "size, MB", "peak, MB"]
    heads += ["pp512, tok/s", "tg64, tok/s"] if timed else []
    lines = [f"| {' | '.join(heads)} |", f"|---{'|--:' * (len(heads) - 1)}|"]
    for row in rows:
        change = 100 * (row.perplexity / rows[0].perplexity - 1)
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        speed = f" {row.prompt:.0f} | {row.decode:.1f} |" if timed else ""
        lines.append(
            f"| {row.name} | {row.bits:.2f} | {row.perplexity:.3f} | {change:+.2f} % | "
            f"{row.weight_bytes / 1e6:.1f} | {peak} |{speed}"
        )
    return "\n".join(lines)


def best(rows: list[Row]) -> list[Row]:
    """Those of which no other is both smaller and better: the Pareto front, by size."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.bits, row.perplexity)):
        if not front or row.perplexity < front[-1].perplexity:
            front.append(row)
    return front


def draw(rows: list[Row], path: Path) -> None:
    """Error against bits; the reference is the floor and not drawn."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    truth, others = rows[0], rows[1:]
    figure, axes = pyplot.subplots(figsize=(7, 4.5))

    def error(row: Row) -> float:
        return max(math.log(row.perplexity / truth.perplexity), 1e-5)

    for row in others:
        axes.plot(row.bits, error(row), "o", color="tab:blue")
        axes.annotate(row.name, (row.bits, error(row)), (4, 4), textcoords="offset points", size=8)
    front = best(others)
    axes.plot([r.bits for r in front], [error(r) for r in front], color="tab:orange", lw=1)
    axes.margins(x=0.12)  # for the names
    axes.set(xlabel="bits a weight", ylabel="nats a token above the reference", yscale="log")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--files", nargs="*", default=[])
    parser.add_argument("--backend")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    schemes = filter(None, arguments.schemes.split(","))
    model = arguments.model
    wanted: list[tuple[str, str, list[str]]] = [
        ("as stored", model, []),
        *((scheme, model, ["--quantize", scheme]) for scheme in schemes),
        *((Path(file).name.removesuffix(".gguf"), file, []) for file in arguments.files),
    ]
    rows = [measured(*row, arguments) for row in wanted]
    print(table(rows))
    if arguments.picture:
        draw(rows, arguments.picture)


if __name__ == "__main__":
    main()
