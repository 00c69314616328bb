"""Programs: passes of one model that were recorded, by what sets them apart."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from boostr.autograd import no_grad
from boostr.backends.base import Backend
from boostr.dispatch import is_strict
from boostr.errors import FallbackError
from boostr.program import Program, capture


class Pass(Protocol):
    """A forward pass that is told what it computes; what differs from run to run lies in tensors.

    It knows nothing of the program that keeps it: a cycle would hold its memory until the garbage
    collector comes by.
    """

    def fill(self, given: Any, /) -> None:
        """Say what the next run computes."""

    def __call__(self) -> Any:
        """Run, or be recorded."""


@dataclass(frozen=True)
class _Recorded:
    program: Program
    fill: Callable[[Any], None] | None


class Programs:
    """At most so many programs; the one whose last use is longest ago makes room. They run one at a
    time and share the memory of their intermediate results, outputs included.

    Attributes:
        captures: how many were ever recorded.   arena: their memory.
    """

    def __init__(self, backend: Backend, most: int) -> None:
        self.backend, self.captures, self._most = backend, 0, most
        self.arena = backend.new_arena()
        self._kept: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def forget(self) -> None:
        """Drop what was recorded over memory that is no more."""
        self._kept.clear()
        self.arena = self.backend.new_arena()

    def step(self, key: Hashable, make: Callable[[], Callable[[], Any]]) -> tuple[Any, Program]:
        """What a pass without inputs gives, and its program."""
        known = self._known(key)
        if known is None:
            program = self._record(key, make(), None)
            return program.outputs, program
        return known.program.run(), known.program

    def over(self, key: Hashable, make: Callable[[], Pass], given: Any, *, recorded: bool) -> Any:
        """What a pass over `given` gives. One that is to be recorded is when it is met first: that
        costs hardly more than to run it."""
        known = self._known(key)
        if known is not None and known.fill is not None:
            known.fill(given)
            return known.program.run()
        made = make()
        made.fill(given)
        if recorded:
            return self._record(key, made, made.fill).outputs
        with no_grad():
            return made()

    def _known(self, key: Hashable) -> _Recorded | None:
        found = self._kept.get(key)
        if found is None:
            return None
        composites = found.program.composites() if is_strict() else ()
        if composites:
            raise FallbackError(f"{'; '.join(composites)} (strict mode forbids the composite)")
        self._kept.move_to_end(key)
        return found

    def _record(self, key: Hashable, made: Callable[[], Any], fill: Any) -> Program:
        with self.backend.constant_weights():
            program = capture(made, self.backend, arena=self.arena)
        self.captures += 1
        self._kept[key] = _Recorded(program, fill)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return program
