"""WeightWatch: whether the weights of modules are those that were seen last."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

from boostr import dispatch
from boostr.nn.module import WEIGHTS, Module
from boostr.tensor import Tensor


class WeightWatch:
    """The trees of modules as they were seen last: weights, and what else modules have that is
    public; the first look finds all of it new.

    A look compares lists, places where an attribute of any module was set since the last one, and
    walks the tree only when one has changed. A part that was replaced lives until the next look; a
    weight does not.
    """

    def __init__(self, *modules: Module) -> None:
        self._modules = modules
        self._weights, self._parts = _Places(), _Places()
        self._lists: list[tuple[list, tuple]] = []  # and what was in them
        self._versions: list[int] | None = None
        self._edit: object = None  # the last of any module

    def changed(self) -> tuple[bool, bool]:
        """Since the last call: (whether others stand in their place, whether any was written)."""
        edit, weights = Module.edits[0], self._weights.values()
        replaced = not (self._same_lists() and (edit is self._edit or self._in_place(weights)))
        self._edit = edit
        if replaced:
            self._weights, self._parts, self._lists = _Places(), _Places(), []
            for module in self._modules:
                self._walk(module)
            weights = self._weights.values()
        versions = list(map(_version, weights))
        written = versions != self._versions
        self._versions = versions
        return replaced, written

    def _same_lists(self) -> bool:
        return all(
            len(now) == len(then) and all(map(operator.is_, now, then)) for now, then in self._lists
        )

    def _in_place(self, weights: list[Any]) -> bool:
        if self._versions is None:
            return False
        seen = (reference() for reference in self._weights.held)
        return all(map(operator.is_, weights, seen)) and all(
            map(operator.is_, self._parts.values(), self._parts.held)
        )

    def _walk(self, module: Module) -> None:
        attributes = vars(module)
        for name, value in attributes.items():
            if name.startswith("_"):
                continue
            if isinstance(value, WEIGHTS):
                self._weights.add(attributes, name, _reference(value))
                continue
            self._parts.add(attributes, name, value)
            if isinstance(value, list):
                self._lists.append((value, tuple(value)))
            for child in value if isinstance(value, list) else (value,):
                if isinstance(child, Module):
                    self._walk(child)


class _Places:
    """Attributes of modules, and what was held there; side by side, to be compared fast."""

    def __init__(self) -> None:
        self._owners: list[dict[str, Any]] = []
        self._names: list[str] = []
        self.held: list[Any] = []

    def add(self, owner: dict[str, Any], name: str, held: Any) -> None:
        self._owners.append(owner)
        self._names.append(name)
        self.held.append(held)

    def values(self) -> list[Any]:
        """What is there now; None where nothing is."""
        return list(map(dict.get, self._owners, self._names))


def _version(weight: Any) -> int:
    """How often a weight was written in place, whatever it is made of."""
    if isinstance(weight, Tensor):
        return weight.version
    return sum(part.version for part in dispatch.tensors_in([weight]))


def _reference(weight: Any) -> Callable[[], Any]:
    """Something that gives the weight as long as it lives, and lets it die where it can."""
    try:
        return weakref.ref(weight)
    except TypeError:  # a form that is a tuple
        return lambda: weight
