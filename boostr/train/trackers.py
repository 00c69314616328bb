"""Trackers: other programs' records of a run, which are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from boostr.errors import OptionError


class Tracker(Protocol):
    """Takes numbers by name."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Files of events in the run's folder."""

    def __init__(self, module: Any, out: Path, config: Mapping[str, Any]) -> None:
        self._writer = module.SummaryWriter(str(out / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {k} = {v}" for k, v in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Project:
    """wandb, and trackio, which has its interface: a run named after its folder."""

    def __init__(self, module: Any, out: Path, config: Mapping[str, Any]) -> None:
        self._module = module
        module.init(project="boostr", name=out.name, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


_KNOWN: Mapping[str, tuple[str, Callable[..., Tracker]]] = {  # name -> (package, what is made)
    "tensorboard": ("tensorboardX", _TensorBoard),
    "wandb": ("wandb", _Project),
    "trackio": ("trackio", _Project),
}
TRACKERS = tuple(_KNOWN)


def find_trackers(report_to: str) -> list[Callable[[Path, Mapping[str, Any]], Tracker]]:
    """(folder of the run, its config) -> a tracker, for each of names with commas between.

    Raises:
        OptionError: an unknown one, or one whose package is not installed.
    """
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    return [_found(name) for name in names]


def _found(name: str) -> Callable[[Path, Mapping[str, Any]], Tracker]:
    if name not in _KNOWN:
        raise OptionError(f"report_to must be of {', '.join(TRACKERS)}, got {name!r}")
    package, made = _KNOWN[name]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise OptionError(
            f"report_to {name} needs {package} ({error}); pip install {package}"
        ) from None
    return lambda out, config: made(module, out, config)


def log_all(trackers: Sequence[Tracker], values: Mapping[str, Any]) -> None:
    """A line of log.jsonl to each; what was not finite is left out."""
    numbers = {n: v for n, v in values.items() if v is not None and n != "step"}
    for tracker in trackers:
        tracker.log(numbers, values["step"])
