"""TrainConfig: what a run does; a field is a key of its TOML file and an option of the command."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from boostr.errors import OptionError
from boostr.models.base import RECOMPUTE
from boostr.train.adamw8bit import AdamW8bit
from boostr.train.masks import LOSS_ON
from boostr.train.muon import Muon
from boostr.train.optimizers import SGD, AdamW, Lion, Optimizer
from boostr.train.samples import TOO_LONG
from boostr.train.schedule import SCHEDULES

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adamw": AdamW, "adamw8bit": AdamW8bit, "sgd": SGD, "lion": Lion, "muon": Muon,
}  # fmt: skip

LORA = ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout")
_ABOVE_0 = (
    "lora_rank", "lora_alpha", "batch_tokens", "grad_accumulation", "max_sequences", "log_every",
    "keep", "sample_tokens", "learning_rate", "max_grad_norm", "dpo_beta", "contrastive_scale",
)  # fmt: skip
_MOST = 2**63  # of a seed, and so of all whole numbers


AUTO = "auto"  # layers are computed again if memory does not hold what they have made


def _said(default: Any, about: str, *choices: str) -> Any:
    return field(default=default, metadata={"help": about, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Raises OptionError for a value out of its range."""

    data: str = _said("", "File or folder of rows, see `Dataset.open`.")
    full: bool = _said(False, "Train all weights; default is a low-rank adapter.")
    lora_rank: int = _said(16, "Rank of the adapter.")
    lora_alpha: float = _said(32.0, "The adapter is scaled by alpha / rank.")
    lora_targets: str = _said("all-linear", "Modules, with commas between; or all-linear.")
    lora_dropout: float = _said(0.0, "Share of an adapter's inputs that are 0 in training.")
    devices: str = _said("", "Numbers of GPUs that train together, such as 0,1; default one.")
    batch_tokens: int = _said(4096, "Tokens of a batch.")
    grad_accumulation: int = _said(1, "Batches of a step on each device, in the memory of one.")
    max_sequences: int = _said(512, "The most samples of a batch.")
    max_length: int = _said(0, "Tokens of a sample; 0: as batch and context hold.")
    steps: int = _said(0, "Steps of the run; 0: as epochs say.")
    epochs: int = _said(1, "How often all data is seen, if steps is 0.")
    recompute: str = _said("none", "What backward computes anew to save memory.", *RECOMPUTE, AUTO)
    learning_rate: float = _said(2e-4, "The highest.")
    schedule: str = _said("cosine", "How it goes down.", *SCHEDULES)
    warmup: float = _said(0.03, "Steps in which it rises, or below 1 the share of them.")
    optimizer: str = _said("adamw", "What moves the weights.", *OPTIMIZERS)
    weight_decay: float = _said(0.0, "Of the optimizer.")
    max_grad_norm: float = _said(1.0, "Gradients are clipped to it.")
    loss_on: str = _said("", "What counts; default as the columns are.", *LOSS_ON)
    too_long: str = _said("", "What becomes of samples that are too long.", *TOO_LONG)
    peak_tflops: float = _said(0.0, "Of the device, for MFU; 0: as its name says, if known.")
    dpo_beta: float = _said(0.1, "Of preferences: how dear it is to leave the given model.")
    no_prompts: bool = _said(False, "Put no prompts of the model before pairs.")
    contrastive_scale: float = _said(20.0, "Of pairs: of the cosines, 1 / temperature.")
    log_every: int = _said(10, "Steps between lines.")
    eval_every: int = _said(0, "Steps between losses of the valid split; 0: none.")
    sample_every: int = _said(0, "Steps between answers to sample, in samples.txt; 0: none.")
    sample: str = _said("", "A text that the model goes on with.")
    sample_tokens: int = _said(64, "The most tokens of such an answer.")
    plot: bool = _said(False, "Draw loss.png in the end; needs boostr[plot].")
    report_to: str = _said("", "Of tensorboard, wandb and trackio, with commas between.")
    save_every: int = _said(0, "Steps between checkpoints; 0: at the end.")
    keep: int = _said(2, "Checkpoints that stay.")
    seed: int = _said(0, "Of the order, and of the adapter.")

    def __post_init__(self) -> None:
        values: dict[str, Any] = dataclasses.asdict(self)
        defaults = {spec.name: spec.default for spec in dataclasses.fields(self)}
        for spec in dataclasses.fields(self):
            _check(spec, values[spec.name])
        for name in _ABOVE_0:
            if not values[name] > 0:
                raise OptionError(f"{name} must be above 0, got {values[name]}")
        adapters = [name for name in LORA if values[name] != defaults[name]]
        if self.full and adapters:
            raise OptionError(f"{', '.join(adapters)}: of an adapter, and full trains all weights")
        if not self.steps and not self.epochs:
            raise OptionError("steps or epochs must be above 0")
        if self.sample_every and not self.sample:
            raise OptionError("sample_every needs a sample, the text that is gone on with")

    @classmethod
    def read(cls, path: str | Path | None, over: Mapping[str, Any]) -> Self:
        """The config of a TOML file, if any, with some values in place of its own.

        Raises:
            OptionError: no TOML; a key that there is not, with the nearest; a wrong type.
        """
        given: dict[str, Any] = {}
        if path is not None:
            try:
                given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise OptionError(f"{path}: {error}") from None
        fields = [spec.name for spec in dataclasses.fields(cls)]
        for name in given:
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise OptionError(f"{path}: unknown key {name!r}{hint}")
        return cls(**{**given, **over})

    def toml(self) -> str:
        """All keys as a file that `read` gives the same of."""
        return "".join(f"{n} = {_toml(v)}\n" for n, v in dataclasses.asdict(self).items())


def _check(spec: dataclasses.Field[Any], value: Any) -> None:
    """Raises OptionError for a value that a key cannot have."""
    kind, choices = type(spec.default), spec.metadata["choices"]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise OptionError(f"{spec.name} must be {kind.__name__}, got {value!r:.80}")
    if choices and value not in (*choices, spec.default):
        raise OptionError(f"{spec.name} must be one of {', '.join(choices)}, got {value!r}")
    most = math.inf if kind is float else _MOST
    if isinstance(value, int | float) and not 0 <= value < most:
        raise OptionError(f"{spec.name} must be 0 or more and below {most:g}, got {value}")


def _toml(value: Any) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
