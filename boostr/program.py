"""Programs: a function run once and recorded, then replayed without Python per op.

`capture(fn)` calls `fn()` once, for real, and records what it launched and on which buffers.
`run()` repeats those launches on them: inputs are changed with `tensor.assign(...)` between
runs, in-place ops (`kv_write`, `add_` of a counter) happen again, outputs are overwritten. All that
differs from run to run must therefore live in tensors; Python values and shapes are frozen at
capture. A capture records what its own thread does, whatever others do on the backend meanwhile; a
program's outputs are for one thread at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from boostr import autograd, backends
from boostr.backends.base import Backend

SHARED = (
    "capture: what another program of the same arena has made is read, whose memory this one may "
    "write; copy it, or record it with an arena of its own"
)


class Program(ABC):
    """A recorded function. `outputs` is what `fn` returned; each `run` overwrites its buffers.

    Attributes:
        memory: bytes of what lies between inputs and outputs; None where the device counts them
            among its own, see `Backend.used_memory`.
    """

    outputs: Any = None
    memory: int | None = None
    fallbacks: Mapping[str, int] = MappingProxyType({})  # what ran without its kernel, how often

    @abstractmethod
    def run(self) -> Any:
        """Replay every recorded call; returns `outputs`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of recorded calls."""

    @abstractmethod
    def calls(self) -> list[str]:
        """The name of each recorded call, in order."""

    def composites(self) -> list[str]:
        """What ran without its kernel, a line each; ops that fell apart into others are none."""
        from boostr.dispatch import COMPOSITE  # which imports the tensor, and it this module

        return [line for line in self.fallbacks if COMPOSITE in line]

    def describe(self) -> list[str]:
        """One line for each recorded call, in order; then one for each fused op that fell apart
        into its parts and each op that ran its composite, with the reason and how often."""
        apart = [f"{line} ({count} times)" for line, count in self.fallbacks.items()]
        return [*self.calls(), *apart]


def capture(
    fn: Callable[[], Any],
    backend: str | Backend | None = None,
    *,
    grad: bool = False,
    arena: Any = None,
) -> Program:
    """Run `fn` once and record it. Reading a tensor's values inside `fn` is an error.

    arena: memory for what `fn` makes, of `backend.new_arena()`. Programs that share one never run
    at the same time; none reads what another has made, and a run, or the recording of one more,
    overwrites the outputs of all. None: memory of the program's own.

    With `grad`, what `fn` computes is on the tape, so that it may call `backward` and step an
    optimizer: one training step is one program. Gradients that it leaves in `.grad` are then the
    program's, and each run overwrites them.
    """
    from boostr.dispatch import collect_fallbacks  # which imports the tensor, and it this module

    with autograd.set_enabled(grad), collect_fallbacks() as fallbacks:
        outputs, program = backends.get(backend).capture(fn, arena)
    program.outputs, program.fallbacks = outputs, fallbacks
    return program
