"""Trainer: the loop of `boostr train`, which a loop of one's own may be copied from."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boostr.backends.collectives import Alone, Communicator
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.loaded import Loaded
from boostr.engine.model import LanguageModel
from boostr.errors import DiskFullError, NumericsError, OptionError
from boostr.io.tokenizer import Tokenizer
from boostr.train.adapters import ALL_LINEAR, add_lora, set_dropout
from boostr.train.card import card
from boostr.train.checkpoints import Checkpoints, own_folder
from boostr.train.checks import adapter_ranks, check_data, check_model
from boostr.train.config import AUTO, OPTIMIZERS, TrainConfig
from boostr.train.curve import check_plot, draw_losses
from boostr.train.data import Dataset
from boostr.train.groups import PREFERENCE
from boostr.train.loss_scale import FLOOR
from boostr.train.memory import MemoryUse, predicted_memory
from boostr.train.meter import Meter
from boostr.train.muon import tables_and_head
from boostr.train.objectives import log_probabilities, objective_for
from boostr.train.optimizers import Optimizer
from boostr.train.packing import Packs, Position
from boostr.train.progress import Progress, forget_after, mean_loss
from boostr.train.ranks import device_numbers
from boostr.train.schedule import schedule
from boostr.train.state import model_key
from boostr.train.step import StepMetrics, compile_step
from boostr.train.trackers import Tracker, find_trackers, log_all

_SHARE = 0.9  # of what is free, as far as predictions are right
FATAL = 5  # steps in a row whose gradients are not finite
_ANY_TIME = (  # may change
    "devices", "steps", "epochs", "log_every", "eval_every", "save_every", "keep", "peak_tflops",
)  # fmt: skip


class Trainer:
    """A run over the data of a config, in a folder: config.toml, log.jsonl, samples.txt,
    checkpoints/, and in the end README.md and the adapter, or in `model/` the whole model.

    What is learned goes by the data: see `objectives`. Preferences are compared with the model as
    it is given.

    Attributes:
        data: what is trained on.   packs: its batches.   steps: of the run.
        rank: of the devices that train together.
    Args:
        model: as `boostr.load` gives it; with `full` as trainable=True does. Unless it has an
            adapter that is trained it is given one.
        rank: of `run_ranks`, each of which has a trainer of its own over the same model; they share
            the work, and rank 0 writes and speaks.
    Raises:
        OptionError, DataError: see `TrainConfig` and `Dataset.open`.
    """

    def __init__(
        self, model: LanguageModel | EmbeddingModel, config: TrainConfig, out: str | Path,
        rank: Communicator | None = None,
    ) -> None:  # fmt: skip
        self.model, self.config, self.out = model, config, Path(out)
        self.rank = rank or Alone(model.backend)
        if config.devices and len(device_numbers(config.devices)) != self.rank.size:
            raise OptionError(
                f"devices {config.devices}: each has a Trainer of its own, with the rank that "
                f"run_ranks gives it, as `boostr train` does; this is one of {self.rank.size}"
            )
        check_model(model, config)
        self._trackers_of = find_trackers(config.report_to)
        if config.plot:
            check_plot()
        self.data = self._dataset("train")
        self.packs = Packs(self.data, config.batch_tokens, config.max_sequences, config.seed)
        self._objective = objective_for(model, self.data, config)
        self._valid: Packs | None = None
        if config.eval_every:
            valid = self._dataset("valid")
            if (valid.kind, valid.width) != (self.data.kind, self.data.width):
                raise OptionError(f"{valid.name} has rows of another kind than {self.data.name}")
            self._valid = Packs(valid, config.batch_tokens, config.max_sequences)
        packs = config.epochs * len(self.packs.epoch(0))
        self.steps = config.steps or -(-packs // self.batches)
        if not config.full and not adapter_ranks(model):
            targets = config.lora_targets
            ends = targets if targets == ALL_LINEAR else [t.strip() for t in targets.split(",")]
            add_lora(model, config.lora_rank, config.lora_alpha, ends, seed=config.seed)
        if config.lora_dropout:
            set_dropout(model, config.lora_dropout, seed=config.seed)
        model.recompute = self._affordable() if config.recompute == AUTO else config.recompute
        self._model_key = model_key(model, whole=self.data.kind == PREFERENCE)
        self._optimizer = _optimizer(model, config)
        self._factor = schedule(config.schedule, self.steps, config.warmup)
        self._step = compile_step(
            model, self._optimizer, tokens=config.batch_tokens,
            max_sequences=config.max_sequences, max_grad_norm=config.max_grad_norm,
            grad_accumulation=config.grad_accumulation, objective=self._objective, rank=self.rank,
        )  # fmt: skip
        self._checkpoints = Checkpoints(self.out / "checkpoints", config.keep)
        self._pending: list[StepMetrics] = []  # not read yet
        self._unsaid: list[StepMetrics] = []  # read, and not logged
        self._skipped = self._in_a_row = 0

    @property
    def batches(self) -> int:
        """Of a step, on all devices."""
        return self.config.grad_accumulation * self.rank.size

    def run(
        self,
        *,
        resume: bool = False,
        say: Callable[[Progress], None] | None = None,
        stepped: Callable[[int, int], None] = lambda done, steps: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end, or until `stop` says so: then the state is saved.

        Args:
            resume: go on from the last checkpoint of the folder, which must be of the same data and
                config; from the beginning if there is none.
            say: called every `log_every` steps.   stepped: called after each with (steps made, of
                how many), which the device may not have finished.
        Returns:
            whether the end was reached.
        Raises:
            OptionError: a folder with a run in it, without `resume`; one of another model, other
                data or config; one that another process is at.
            DiskFullError: no room for checkpoints and what is trained.
            NumericsError: gradients were not finite in FATAL steps one after the other, or in all.
            Whatever `say`, `stepped` or a tracker raises: the state is saved first.
        """
        if not self._is_first:
            say, stepped = None, lambda done, steps: None
        with contextlib.ExitStack() as held:
            if self._is_first:
                kept = self.config.keep if self.config.save_every else 0
                held.enter_context(own_folder(self.out, resume, self._optimizer, kept))
            self._compare()
            done, position = self._begun(resume)
            config, trackers = dataclasses.asdict(self.config), list[Tracker]()
            for made in self._trackers_of if self._is_first else ():
                trackers.append(tracker := made(self.out, config))
                held.callback(tracker.close)
            done = self._trained(done, position, trackers, say, stepped, stop)
            if done >= self.steps and self._is_first:
                self._finish()
        return done >= self.steps

    def _trained(
        self, done: int, position: Position, trackers: Sequence[Tracker],
        say: Callable[[Progress], None] | None, stepped: Callable[[int, int], None],
        stop: Callable[[], bool],
    ) -> int:  # fmt: skip
        """From so many steps to the end, or until `stop`; how many are made, which are saved."""
        walk = self.packs.batches(position, self.rank.rank, self.rank.size)
        meter = Meter(self.model, self.config.peak_tflops * 1e12 or None, self.rank)
        while done < self.steps and not any(self.rank.gather(stop())):
            taken = list(itertools.islice(walk, self.config.grad_accumulation))
            batches = [batch for _, batch in taken]
            self._optimizer.lr = self.config.learning_rate * self._factor(done)
            self._pending.append(self._step(*batches))
            meter.add(batches)
            done, position = done + 1, taken[-1][0]
            try:
                stepped(done, self.steps)
                self._report(done, meter, trackers, say)
            except (NumericsError, DiskFullError):
                raise
            except Exception:
                self._save(done, position)
                raise
            if self._is_due(self.config.save_every, done):
                self._save(done, position)
        self._read()
        self._save(done, position)
        return done

    def evaluate(self) -> float:
        """The mean loss over what counts of the valid split."""
        if self._valid is None:
            raise OptionError("evaluate: set eval_every, and have a valid split")
        self._compare()
        rank, total, count = self.rank, 0.0, 0
        walk = self._valid.batches(rank=rank.rank, ranks=rank.size)
        for _ in self._valid.epoch(0)[rank.rank :: rank.size]:
            _, batch = next(walk)
            total += self._step.measure(batch)
            count += self._objective.count(batch)
        totals, counts = zip(*rank.gather((total, count)), strict=True)
        return sum(totals) / sum(counts)

    def predicted_memory(self) -> MemoryUse | None:
        """See `train.memory`; what was asked is no longer a run's beginning, and not to be run."""
        return self._memory_with(self._optimizer, self.rank)

    # -- parts -----------------------------------------------------------------------------------
    def _memory_with(
        self, optimizer: Optimizer, rank: Communicator | None = None
    ) -> MemoryUse | None:
        longest, width = int(self.data.lengths.max()), self.data.width
        if width > 1:  # so that a group fits into what is measured, half a batch
            longest = min(longest, max(self.config.batch_tokens // (2 * width), 1))
        return predicted_memory(
            self.model, optimizer, tokens=self.config.batch_tokens,
            max_sequences=self.config.max_sequences,
            grad_accumulation=self.config.grad_accumulation,
            max_length=longest, objective=self._objective, rank=rank,
        )  # fmt: skip

    def _affordable(self) -> str:
        """Whether what is free holds a run that keeps what layers compute: "none", else "layer";
        one answer for all ranks."""
        return "none" if all(self.rank.gather(self._has_room())) else "layer"

    def _has_room(self) -> bool:
        model, free = self.model, self.model.backend.free_memory()
        model.recompute, optimizer = "none", _optimizer(model, self.config)
        try:
            use = self._memory_with(optimizer)  # alone, as a rank may fail where others do not
        except MemoryError:  # a part of a batch is too much already
            return False
        if free is None or use is None:
            raise OptionError(
                f"recompute auto: {model.backend.name} does not say how much memory is free; say "
                "none or layer"
            )
        sums = 4 * sum(p.size for p in optimizer.params) if self.rank.size > 1 else 0
        return use.total - use.weights + sums <= _SHARE * free

    @property
    def _is_first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank.rank == 0

    @staticmethod
    def _is_due(every: int, done: int) -> bool:
        return every > 0 and done % every == 0

    def _compare(self) -> None:
        """Let preferences know what the model says before it has learned anything."""
        for packs in (self.packs, self._valid):
            if packs is not None and packs.data.kind == PREFERENCE and packs.reference is None:
                packs.reference = log_probabilities(self.model, packs, self.rank)

    def _dataset(self, split: str) -> Dataset:
        config, tokenizer = self.config, self.model.tokenizer
        context = self.model.config.max_position_embeddings
        if isinstance(self.model, EmbeddingModel):
            context = self.model.max_length
        length = config.max_length or min(config.batch_tokens, context)
        if length > min(config.batch_tokens, context):
            raise OptionError(
                f"max_length {length}: a step has {config.batch_tokens} tokens, and the model's "
                f"context holds {context}"
            )
        if not self._is_first:
            self.rank.wait()  # for the cache
        data = _opened(config, tokenizer, split, length, self._prompts())
        if self._is_first:
            self.rank.wait()
        check_data(data, self.model)
        return data

    def _prompts(self) -> tuple[str, str]:
        """What an embedding model wants before anchors, and before what they are to find."""
        if self.config.no_prompts or not isinstance(self.model, EmbeddingModel):
            return "", ""
        sentence = self.model.sentence
        found = sentence.prompts.of_pair()
        if any(found) and not sentence.include_prompt:
            raise OptionError(
                f"{self.model.source} leaves prompts out of its mean, which training cannot; "
                "no_prompts trains without them"
            )
        return found

    def _begun(self, resume: bool) -> tuple[int, Position]:
        """(steps made, position) to begin with."""
        own = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in _ANY_TIME}
        own |= {"data": self.data.key, "model": self._model_key}
        own["grad_accumulation"] = self.batches  # on however many devices
        self._identity = own
        values = self._checkpoints.load(self.model, self._optimizer) if resume else None
        if values is not None and (then := values["config"]) != own:
            other = [name for name in own if then.get(name) != own[name]]
            raise OptionError(f"{self.out}: the run there has another {', '.join(other)}")
        self.rank.wait()  # until all have read what rank 0 may write
        if self._is_first:
            forget_after(0 if values is None else values["step"], self.out / "log.jsonl")
            (self.out / "config.toml").write_text(self.config.toml(), encoding="utf-8")
        if values is None:
            return 0, Position()
        self._skipped = values["skipped"]
        return values["step"], Position(*values["position"])

    def _read(self) -> None:
        """Count the steps since the last time; raises when too many move nothing."""
        read, self._pending = self._pending, []
        self._unsaid += read
        for metrics in read:
            finite = bool(np.isfinite(metrics.grad_norm))
            self._skipped += not finite
            if finite:
                self._in_a_row = 0
            elif metrics.loss_scale <= FLOOR:  # else the scale was too large, and is smaller now
                self._in_a_row += 1
            if self._in_a_row >= min(FATAL, self.steps):
                raise NumericsError(
                    f"gradients were not finite in {self._in_a_row} steps one after the other; the "
                    "weights are as before them. Try a lower learning_rate, or dtype float32"
                )

    def _report(
        self, done: int, meter: Meter, trackers: Sequence[Tracker],
        say: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        """What is due after a step: a line, an evaluation, a sample."""
        evaluates = self._is_due(self.config.eval_every, done)
        if evaluates or done == self.steps or self._is_due(self.config.log_every, done):
            log_all(trackers, self._log(done, meter, evaluates, say))
        if self._is_first and self._is_due(self.config.sample_every, done):
            with meter.paused():
                self._sample(done)

    def _log(
        self, done: int, meter: Meter, evaluates: bool, say: Callable[[Progress], None] | None
    ) -> dict[str, Any]:
        """Say how the run is; what log.jsonl has of it."""
        self._read()  # which waits for the steps
        read, self._unsaid = self._unsaid, []
        rates = meter.read(self.steps - done)
        progress = Progress(
            done, self.steps, mean_loss(read), read[-1].grad_norm, self._optimizer.lr, rates,
            self._skipped, self.evaluate() if evaluates else None,
        )  # fmt: skip
        named = progress.named()
        if self._is_first:
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(named) + "\n")
        if say is not None:
            say(progress)
        meter.restart()
        return named

    def _sample(self, done: int) -> None:
        """What the model says now, of its likeliest tokens."""
        answer = self.model.generate(
            self.config.sample, max_tokens=self.config.sample_tokens, temperature=0.0
        )
        with (self.out / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"step {done}: {self.config.sample}{answer.text}\n\n")

    def _save(self, done: int, position: Position) -> None:
        self._read()
        if not self._is_first:
            return
        values: dict[str, Any] = {"position": list(position), "skipped": self._skipped}
        self._checkpoints.save(done, self.model, self._optimizer, config=self._identity, **values)

    def _finish(self) -> None:
        """Write what was trained, for others to load, and what it is."""
        if self.config.full:
            self.model.save(self.out / "model")
        else:
            self.model.save_adapter(self.out)
        text = card(self.config, self.model.source, self.steps, self.data.key)
        (self.out / "README.md").write_text(text, encoding="utf-8")
        if self.config.plot:
            draw_losses(self.out / "log.jsonl", self.out / "loss.png")


def _optimizer(model: Loaded, config: TrainConfig) -> Optimizer:
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        options["adamw"] = tables_and_head(model.module)
    return OPTIMIZERS[config.optimizer](model.parameters(), **options)


def _opened(
    config: TrainConfig, tokenizer: Tokenizer | None, split: str, length: int,
    prompts: tuple[str, str],
) -> Dataset:  # fmt: skip
    return Dataset.open(
        config.data, tokenizer, split=split, max_length=length, loss_on=config.loss_on or None,
        too_long=config.too_long or None, prompts=prompts,
    )  # fmt: skip
