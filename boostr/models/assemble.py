"""The rule for weights that a checkpoint stores in several tensors: packed codes, scales, zeros.

`assemble(name, form)` makes one weight `NAME.weight` of the tensors `NAME.PART`; a `Format` says
which parts there are and how they become a scheme. Like all rules it reads nothing, and rows and
columns of the weight are rows and columns of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from boostr.backends.base import Backend
from boostr.errors import ModelFileError
from boostr.models.lazy import Held, Index, Indices, LazyWeight
from boostr.models.plan import Naming, Pattern, Rule
from boostr.quant.scheme import QuantizedTensor

Parts = Mapping[str, LazyWeight]


class Format(Protocol):
    """How a method of quantization stores a weight.

    Attributes:
        parts: what the tensors end with; where the first is, all must be.
    """

    parts: tuple[str, ...]

    def shape(self, parts: Parts) -> tuple[int, ...]:
        """The shape [N, K] that the parts stand for."""
        ...

    def cut(self, parts: Parts, axis: int, index: Index) -> Parts:
        """The parts of some rows (axis 0) or columns (axis 1).

        Raises:
            ModelFileError: if a group or a packed word would be cut.
        """
        ...

    def weight(self, parts: Parts, backend: Backend) -> QuantizedTensor:
        """The parts, read and laid out anew as a scheme wants them."""
        ...

    def store(self, weight: QuantizedTensor) -> Mapping[str, np.ndarray] | None:
        """The parts of a weight as they are written; None if it is of another scheme."""
        ...


class Assembled(LazyWeight):
    """A weight in parts."""

    def __init__(self, parts: Parts, form: Format) -> None:
        self.parts, self.form = parts, form
        self.path = parts[form.parts[0]].path
        self.sources = tuple(name for part in parts.values() for name in part.sources)
        self.shape = form.shape(parts)

    def read(self, indices: Indices) -> np.ndarray:
        raise ModelFileError(
            f"{self.path}: {' + '.join(self.sources)} are the parts of one packed weight, which "
            "cannot be turned, stacked or joined with others"
        )

    def weight(self, backend: Backend) -> QuantizedTensor:
        return self.form.weight(self.parts, backend)

    def take(self, axis: int, index: Index) -> LazyWeight:
        return Assembled(self.form.cut(self.parts, axis, index), self.form)


@dataclass(frozen=True)
class _Assemble:
    name: Pattern
    form: Format

    def load(self, naming: Naming) -> None:
        first, *others = self.form.parts
        names = [name for name in naming.weights if name.endswith(f".{first}")]
        for base in (name.removesuffix(f".{first}") for name in names):
            if not self._stands_for(base):
                continue
            absent = [p for p in others if f"{base}.{p}" not in naming.weights]
            if absent:
                naming.problems.append(f"{base}: has {first}, but not {', '.join(absent)}")
                continue
            parts = {p: naming.weights.pop(f"{base}.{p}") for p in self.form.parts}
            naming.put(f"{base}.weight", Assembled(parts, self.form))

    def save(self, naming: Naming) -> None:
        for name, weight in list(naming.weights.items()):
            base = name.removesuffix(".weight")
            if base == name or not isinstance(weight, Held) or not self._stands_for(base):
                continue
            packed = weight.value
            parts = self.form.store(packed) if isinstance(packed, QuantizedTensor) else None
            if parts is not None:
                del naming.weights[name]
                for part, array in parts.items():
                    naming.put(f"{base}.{part}", Held(f"{base}.{part}", array))

    def _stands_for(self, base: str) -> bool:
        fields = self.name.match(base)
        return fields is not None and not fields["below"]


def assemble(name: str, form: Format) -> Rule:
    """Tensors `NAME.PART` as the one packed weight `NAME.weight`."""
    return _Assemble(Pattern(name), form)
