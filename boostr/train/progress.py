"""Progress: what is said of a run, and under which names."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boostr.train.meter import Rates
from boostr.train.step import StepMetrics


@dataclass(frozen=True)
class Progress:
    """What is said every `log_every` steps.

    Attributes:
        step: steps made, of `steps`.   loss: mean over the labels since the last time.
        grad_norm, learning_rate: of the last step.   rates: since the last time.
        skipped: steps so far that moved nothing, as their gradients were not finite.
        eval_loss: of the valid split, where it was measured now.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    rates: Rates
    skipped: int
    eval_loss: float | None = None

    def named(self) -> dict[str, Any]:
        """For JSON, under the names of transformers' logs; what is not known is left out, and what
        is not finite is None."""
        rates = self.rates
        named = {
            "step": self.step, "train/loss": self.loss, "train/grad_norm": self.grad_norm,
            "train/learning_rate": self.learning_rate, "train/tokens": rates.tokens,
            "train/tokens_per_second": rates.tokens_per_second, "train/mfu": rates.mfu,
            "train/memory_bytes": rates.memory, "train/seconds_left": rates.seconds_left,
            "train/skipped": self.skipped, "eval/loss": self.eval_loss,
        }  # fmt: skip
        said = {name: value for name, value in named.items() if value is not None}
        return {name: value if math.isfinite(value) else None for name, value in said.items()}


def forget_after(done: int, log: Path) -> None:
    """Drop the lines of a log.jsonl of steps behind `done`, which a resumed run makes again, and
    one that was not written to its end."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= done:
                kept.append(f"{line}\n")
    new = log.with_suffix(".new")
    new.write_text("".join(kept))
    new.replace(log)


def mean_loss(steps: Sequence[StepMetrics]) -> float:
    """Over the labels of all steps that moved something; nan if none did."""
    counts = np.array([m.target_count if np.isfinite(m.grad_norm) else 0 for m in steps])
    losses = np.array([m.loss for m in steps])
    total = np.where(counts > 0, losses * counts, 0).sum()
    return float(total / counts.sum()) if counts.any() else math.nan
