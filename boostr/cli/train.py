"""`boostr train`: a run over data, whose options are the keys of its TOML file."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from boostr.cli import INTERRUPTED
from boostr.cli.interrupts import StopOnInterrupt
from boostr.cli.options import (
    Command,
    ModelChoice,
    as_json,
    option_errors_are_usage,
    trained_model,
)
from boostr.cli.output import (
    human_bytes,
    human_count,
    human_time,
    print_above_bar,
    print_json,
    progress_bar,
)
from boostr.errors import OptionError
from boostr.train.config import AUTO, TrainConfig

if TYPE_CHECKING:
    from boostr.backends.collectives import Communicator
    from boostr.train.memory import MemoryUse
    from boostr.train.trainer import Progress, Trainer

_STOPS = "\nthis step is made to its end and the state saved; Ctrl-C again leaves at once\n"


def _config_options(command: Command) -> Command:
    """An option for each key, None where it is not given."""
    for spec in reversed(dataclasses.fields(TrainConfig)):
        flag, about, kind = spec.name.replace("_", "-"), spec.metadata["help"], type(spec.default)
        more: dict[str, Any] = {"type": kind, "metavar": kind.__name__.upper()}
        if spec.metadata["choices"]:
            more = {"type": click.Choice(spec.metadata["choices"])}
        if kind is bool:
            more = {"is_flag": True}
        if spec.default not in ("", False):
            about += f" [default: {spec.default}]"
        command = click.option(f"--{flag}", spec.name, default=None, help=about, **more)(command)
    return command


@click.command("train")
@trained_model
@click.option("-o", "--out", default="run", show_default=True, metavar="DIR", help="Its folder.")
@click.option("--config", "path", metavar="FILE", help="TOML with keys named as these options.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and take, and show a batch.")
@_config_options
@as_json
def command(
    choice: ModelChoice, out: str, path: str | None, resume: bool, dry_run: bool, as_json: bool,
    **keys: Any,
) -> int:  # fmt: skip
    """Train MODEL on --data: an adapter as peft's over weights of any form, or with --full all.

    The folder gets config.toml, log.jsonl, checkpoints and in the end the adapter (--full: model/).
    Ctrl-C, or a SIGTERM, saves the state first; --resume goes on.
    """
    from boostr.train.ranks import run_ranks

    given = {name: value for name, value in keys.items() if value is not None}
    with option_errors_are_usage():
        config = TrainConfig.read(path, given)
        if not config.data:
            raise click.UsageError("--data is needed, or data in the TOML file")

        def work(rank: Communicator | None = None) -> int:
            run = _trainer(choice, config, out, rank)
            return _dry(run) if dry_run else _train(run, resume, as_json)

        return run_ranks(work, config.devices, choice.backend) if config.devices else work()


def _trainer(
    choice: ModelChoice, config: TrainConfig, out: str, rank: Communicator | None
) -> Trainer:
    """A run, on the device of a rank; rank 0 says what comes."""
    from boostr.engine.embedder import EmbeddingModel
    from boostr.engine.model import LanguageModel
    from boostr.train.trainer import Trainer

    trains, first = config.full or choice.adapter is not None, rank is None or rank.rank == 0
    model, _ = choice.load(trains, None if rank is None else rank.backend, quiet=not first)
    if not isinstance(model, LanguageModel | EmbeddingModel):
        raise OptionError(f"{model.source} is {model.is_a}; decoders and embedders are trained")
    run = Trainer(model, config, out, rank)
    if first:
        _say_what_comes(run)
    return run


def _dry(run: Trainer) -> int:
    use = run.predicted_memory()
    if run.rank.rank == 0:
        _say_memory(use)
        click.echo(_shown(run))
    return 0


def _train(run: Trainer, resume: bool, as_json: bool) -> int:
    if run.rank.rank:
        return 0 if run.run(resume=resume) else INTERRUPTED
    start = time.perf_counter()
    stops = StopOnInterrupt(_STOPS, (signal.SIGINT, signal.SIGTERM))
    with stops as interrupt, progress_bar("train", "step") as show:
        finished = run.run(
            resume=resume, say=lambda now: print_above_bar(_line(now)),
            stepped=lambda done, steps: show(done, steps, ""), stop=lambda: interrupt.requested,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    if as_json:
        print_json({"path": str(run.out), "finished": finished, "seconds": seconds})
    else:
        what = "trained" if finished else "stopped, --resume goes on:"
        click.echo(f"{what} {run.out} in {seconds:.1f} s")
    return 0 if finished else INTERRUPTED


def _say_what_comes(run: Trainer) -> None:
    counts = dict(run.data.counts)
    others = "".join(f"; {n}: {what}" for what, n in counts.items() if what != "used")
    trained = sum(p.size for p in run.model.parameters() if p.requires_grad)
    click.echo(
        f"{run.data.name}: {counts['used']} samples of {run.data.ends[-1]} tokens{others}\n"
        f"{run.steps} steps of {run.config.batch_tokens * run.batches} tokens, "
        f"{run.packs.fill():.1%} full; "
        f"{human_count(trained)} parameters train"
        + (f"; recompute {run.model.recompute}" if run.config.recompute == AUTO else ""),
        err=True,
    )


def _say_memory(use: MemoryUse | None) -> None:
    if use is not None:
        parts = ", ".join(
            f"{human_bytes(n)} of {what}" for what, n in dataclasses.asdict(use).items()
        )
        click.echo(f"about {human_bytes(use.total)} of memory: {parts}", err=True)


def _line(now: Progress) -> str:
    rates = now.rates
    parts = [
        f"step {now.step}/{now.steps}", f"loss {now.loss:.4f}",
        None if now.eval_loss is None else f"eval {now.eval_loss:.4f}",
        f"norm {now.grad_norm:.3g}", f"lr {now.learning_rate:.2e}",
        f"{rates.tokens_per_second:.0f} tok/s",
        None if rates.mfu is None else f"MFU {rates.mfu:.1%}",
        None if rates.memory is None else human_bytes(rates.memory),
        None if not now.skipped else f"{now.skipped} skipped",
        None if rates.seconds_left is None else f"{human_time(rates.seconds_left)} left",
    ]  # fmt: skip
    return "  ".join(part for part in parts if part is not None)


def _shown(run: Trainer) -> str:
    """The text of the first batch; what counts is green and bold."""
    _, batch = next(run.packs.batches())
    tokenizer, pieces = run.model.tokenizer, []
    for start, stop in itertools.pairwise(batch.cu_seqlens.tolist()):
        own = zip(batch.input_ids[start:stop].tolist(), batch.labels[start:stop] >= 0, strict=True)
        for counts, run_of in itertools.groupby(own, key=lambda pair: bool(pair[1])):
            ids = [token for token, _ in run_of]
            text = str(ids) if tokenizer is None else tokenizer.decode(ids, False)
            pieces.append(click.style(text, fg="green", bold=True) if counts else text)
        pieces.append("\n" + "-" * 40 + "\n")
    return "".join(pieces)
