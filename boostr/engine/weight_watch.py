"""WeightWatch: whether the weights of a model are those that were seen last."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from boostr import dispatch
from boostr.nn.module import Module
from boostr.tensor import Tensor


class WeightWatch:
    """The weights of a module's parameters; the first look finds all of them new."""

    def __init__(self, module: Module) -> None:
        self._places = [(owner, name) for _, owner, name in module.parameters()]
        self._seen: list[tuple[Callable[[], Any], int]] = []

    def changed(self) -> tuple[bool, bool]:
        """Since the last call: (whether others stand in their place, whether any was written)."""
        now = [getattr(owner, name) for owner, name in self._places]
        known = [seen() for seen, _ in self._seen]
        versions = [_version(weight) for weight in now]
        replaced = len(known) != len(now) or any(
            a is not b for a, b in zip(known, now, strict=True)
        )
        written = versions != [version for _, version in self._seen]
        if replaced or written:
            self._seen = [(_reference(w), v) for w, v in zip(now, versions, strict=True)]
        return replaced, written


def _version(weight: Any) -> int:
    """How often a weight was written in place, whatever it is made of."""
    parts = (weight,) if isinstance(weight, Tensor) else dispatch.tensors_in([weight])
    return sum(getattr(part, "version", 0) for part in parts)


def _reference(weight: Any) -> Callable[[], Any]:
    """Something that gives the weight as long as it lives, and lets it die where it can."""
    try:
        return weakref.ref(weight)
    except TypeError:  # a form that is a tuple
        return lambda: weight
