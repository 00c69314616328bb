"""`boostr bench`: speed and memory of a model, in llama-bench's terms."""

from __future__ import annotations

import csv
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from boostr import env
from boostr.cli.options import ModelChoice, as_json, decoder_choice
from boostr.cli.output import human_bytes, human_count, print_json
from boostr.cli.types import Counts

if TYPE_CHECKING:
    from boostr.bench import Report, Row


@click.command("bench")
@decoder_choice
@click.option(
    "-p",
    "prompt",
    type=Counts(),
    default="512",
    show_default=True,
    help="Tokens of prompt; 0 leaves it out.",
)
@click.option(
    "-n",
    "generate",
    type=Counts(),
    default="128",
    show_default=True,
    help="Tokens to generate; 0 leaves it out.",
)
@click.option(
    "-d",
    "depth",
    type=Counts(),
    default="0",
    show_default=True,
    help="Tokens that are in the cache before.",
)
@click.option(
    "-b", "batch", type=Counts(1), default="1", show_default=True, help="Sequences at a time."
)
@click.option(
    "-r",
    "repetitions",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    metavar="N",
    help="Timed runs, after one warm-up.",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help=f"Threads of the CPU. [{env.NUM_THREADS.name}]",
)
@click.option(
    "-o",
    "form",
    type=click.Choice(["md", "json", "csv"]),
    default="md",
    show_default=True,
    help="How rows are printed.",
)
@as_json
def command(
    choice: ModelChoice,
    prompt: tuple[int, ...],
    generate: tuple[int, ...],
    depth: tuple[int, ...],
    batch: tuple[int, ...],
    repetitions: int,
    threads: int | None,
    form: str,
    as_json: bool,
) -> None:
    """Measure MODEL: tokens/s of prompts (pp) and of generation (tg), memory, bandwidth.

    -p, -n, -d and -b take several numbers with commas between them; all combinations are run.
    """
    from boostr.bench import Workload, bench

    if not any(prompt) and not any(generate):
        raise click.UsageError("-p 0 and -n 0 leave nothing to measure")
    if threads is not None:
        os.environ[env.NUM_THREADS.name] = str(threads)
    form = "json" if as_json else form
    workload = Workload(prompt, generate, depth, batch, repetitions)
    progress = _progress if form == "md" and sys.stderr.isatty() else None
    report = bench(lambda: choice.load_decoder()[0], workload, progress)
    if form == "json":
        print_json([_flat(report, row) for row in report.rows])
    elif form == "csv":
        rows = [_flat(report, row) for row in report.rows]
        writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_markdown(report)


def _progress(row: Row) -> None:
    click.echo(f"{row.test}: {row.mean:.1f} tok/s", err=True)


def _flat(report: Report, row: Row) -> dict[str, Any]:
    """One row with everything about the run, as llama-bench has it."""
    from boostr.bench import EXCLUDED

    bandwidth, step = report.weight_bandwidth(row), row.step
    known = report.read_bandwidth
    above = None if report.peak_bytes is None else report.peak_bytes - report.weight_bytes
    return {
        "model": report.model,
        "architecture": report.architecture,
        "weights": report.weights,
        "parameters": report.parameters,
        "weight_bytes": report.weight_bytes,
        "kv_dtype": report.kv_dtype,
        "kv_bytes_per_token": report.kv_token_bytes,
        "backend": report.backend,
        "threads": report.threads,
        "test": row.test,
        "n_prompt": row.n_prompt,
        "n_gen": row.n_gen,
        "n_depth": row.n_depth,
        "n_batch": row.n_batch,
        "avg_ts": row.mean,
        "stddev_ts": row.sd,
        "samples_ts": list(row.rates),
        "first_token_seconds": row.first_token_seconds,
        "capture_seconds": row.capture_seconds,
        "step_seconds": step and step.seconds,
        "step_outside_kernels_seconds": step and step.outside,
        "step_kernel_calls": step and step.kernel_calls,
        "step_numpy_calls": step and step.numpy_calls,
        "weight_bytes_per_second": bandwidth,
        "read_bytes_per_second": known,
        "bandwidth_share": bandwidth / known if bandwidth and known else None,
        "load_seconds": report.load_seconds,
        "peak_bytes": report.peak_bytes,
        "peak_above_weights_bytes": above,
        "compiled_kernels": report.compiled_kernels,
        "excluded": EXCLUDED,
        **{f"version_{name}": version for name, version in report.versions.items()},
    }


def _print_markdown(report: Report) -> None:
    from boostr.bench import EXCLUDED

    click.echo("| model | weights | size | params | backend | threads | test | t/s | first token |")
    click.echo("|---|---|--:|--:|---|--:|---|--:|--:|")
    name = os.path.basename(report.model.rstrip("/")) or report.model
    fixed = (
        f"| {name} | {report.weights} | {human_bytes(report.weight_bytes)} | "
        f"{human_count(report.parameters)} | {report.backend} | {report.threads} |"
    )
    for row in report.rows:
        first = row.first_token_seconds
        first_text = "" if first is None else f"{first * 1e3:.1f} ms"
        click.echo(f"{fixed} {row.test} | {row.mean:.2f} ± {row.sd:.2f} | {first_text} |")
    click.echo()
    if report.peak_bytes is not None:
        above = report.peak_bytes - report.weight_bytes
        click.echo(
            f"peak memory, loading and running: {human_bytes(report.peak_bytes)} above the start, "
            f"{above / 2**20:+.1f} MiB to the weights{_with_compiler(report)}"
        )
    click.echo(f"cache: {report.kv_token_bytes} bytes a token, {report.kv_dtype}")
    for row in report.rows:
        for line in _details(report, row):
            click.echo(f"{row.test}: {line}")
    click.echo(f"not in the times: {EXCLUDED}")
    click.echo(", ".join(f"{name} {version}" for name, version in report.versions.items()))


def _with_compiler(report: Report) -> str:
    compiled = report.compiled_kernels
    return f" (with the compiler, which made {compiled} kernels: repeat)" if compiled else ""


def _reader(report: Report) -> str:
    """Whose bandwidth the report compares with."""
    on_cpu = report.backend == "numpy"
    return f"{report.threads} threads read" if on_cpu else "a copy moves on the device"


def _details(report: Report, row: Row) -> list[str]:
    """What there is to say of a decode row besides its rate."""
    lines, bandwidth, step = [], report.weight_bandwidth(row), row.step
    if bandwidth is not None and report.read_bandwidth is not None:
        lines.append(
            f"reads {bandwidth / 1e9:.1f} GB/s of weights, {bandwidth / report.read_bandwidth:.0%} "
            f"of the {report.read_bandwidth / 1e9:.1f} GB/s that {_reader(report)} here"
        )
    if step is not None:
        lines.append(
            f"a step takes {step.seconds * 1e3:.2f} ms, {step.outside * 1e3:.3f} ms "
            f"({step.outside / step.seconds:.1%}) of it outside of native kernels; its program has "
            f"{step.kernel_calls} kernel calls and {step.numpy_calls} of numpy"
        )
    if row.capture_seconds is not None:
        lines.append(f"capture of the step {row.capture_seconds * 1e3:.1f} ms")
    return lines
