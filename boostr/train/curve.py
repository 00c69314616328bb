"""loss.png: the losses of a run's log, drawn by matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from boostr.errors import OptionError


def check_plot() -> None:
    """Raises OptionError if there is nothing to draw with."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise OptionError(f"plot needs matplotlib ({error}); pip install 'boostr[plot]'") from None


def draw_losses(log: Path, path: Path) -> None:
    """Draw train/loss and eval/loss of a log.jsonl over steps, into a png."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(8, 4.5))
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for name in ("train/loss", "eval/loss"):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.legend()
    figure.savefig(path)
