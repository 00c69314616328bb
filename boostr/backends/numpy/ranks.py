"""Ranks on the CPU: threads that share it. Nothing is faster for them; they are for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr.backends.collectives import Alone, Communicator, Group
from boostr.backends.numpy.backend import NumpyBackend


class CpuRank(Communicator):
    """A rank whose sums are made in the order of ranks: the same bits every time."""

    backend: NumpyBackend

    def all_reduce(self, arrays: Sequence[np.ndarray]) -> None:
        self._all_reduce(*arrays)
        if self.backend.recorder is not None:
            self.backend.recorder.python_call(self._all_reduce, tuple(arrays), None)

    def _all_reduce(self, *arrays: np.ndarray) -> None:
        """Each rank sums some of the arrays, for all."""
        everyone = self.gather(arrays)
        for place in range(self.rank, len(arrays), self.size):
            total, *others = (own[place] for own in everyone)
            with np.errstate(all="ignore"):  # what is not finite is looked for later
                for other in others:
                    total += other
            for other in others:
                other[...] = total
        self.wait()


def open_ranks(backend: NumpyBackend, size: int) -> list[Communicator]:
    """Ranks of one group."""
    if size == 1:
        return [Alone(backend)]
    group = Group(size)
    return [CpuRank(group, rank, backend) for rank in range(size)]
