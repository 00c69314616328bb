"""Schedules: the learning rate of each step, as a share of the highest."""

from __future__ import annotations

import math
from collections.abc import Callable

from boostr.errors import OptionError

Schedule = Callable[[int], float]  # step, from 0 on -> 0..1


def _linear(done: float) -> float:
    return 1 - done


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _stable(done: float, decay: float = 0.2) -> float:
    """Warmup-stable-decay: level, and down to 0 in the last fifth (Hu et al. 2024, MiniCPM)."""
    return min(1.0, (1 - done) / decay)


_AFTER = {"constant": lambda done: 1.0, "linear": _linear, "cosine": _cosine, "wsd": _stable}
SCHEDULES = tuple(_AFTER)


def schedule(name: str, steps: int, warmup: float = 0.0) -> Schedule:
    """A schedule over a run of so many steps.

    Args:
        name: "constant", "linear", "cosine" (both down to 0) or "wsd" (warmup-stable-decay).
        warmup: steps at the beginning in which it rises from 0, or below 1 the share of them.
    Returns:
        the factor of step 0, 1, …; the first step of a warmup already moves.
    Raises:
        OptionError: an unknown name, or a warmup that does not end.
    """
    if name not in _AFTER:
        raise OptionError(f"schedule must be one of {', '.join(_AFTER)}, got {name!r}")
    rising = round(warmup * steps) if warmup < 1 else round(warmup)
    if warmup < 0 or rising > steps:
        raise OptionError(f"warmup must be 0 to {steps} steps, got {warmup}")
    rest = max(steps - rising, 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return _AFTER[name](min((step - rising) / rest, 1.0))

    return factor
