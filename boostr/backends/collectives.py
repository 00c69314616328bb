"""Collectives: what ranks, threads of one process with a device each, do together.

All ranks of a group make the same calls in the same order. One that fails ends the others: their
next call, or the one that they wait in, raises `RankError`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from boostr.backends.base import Array, Backend
from boostr.errors import RankError

T = TypeVar("T")
_ENDED = object()


class Group:
    """Where the threads of `size` ranks meet.

    Attributes:
        failure: (rank, its error) of the first that failed; None while none has.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.failure: tuple[int, BaseException] | None = None
        self._barrier = threading.Barrier(size)
        self._lock = threading.Lock()
        self._on_failure: list[Callable[[], object]] = []
        # two rooms by turns: a rank writes into one while others may still read the other
        self._rooms: tuple[list, list] = ([None] * size, [None] * size)

    def exchange(self, rank: int, turn: int, value: object) -> list:
        """The values of all ranks, once all are here."""
        room = self._rooms[turn % 2]
        room[rank] = value
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise RankError("another rank has failed") from None
        return list(room)

    def on_failure(self, do: Callable[[], object]) -> None:
        """Have something done when a rank fails, by that rank's thread."""
        self._on_failure.append(do)

    def fail(self, rank: int, error: BaseException) -> None:
        """A rank has failed: the others shall end."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = rank, error
        self._barrier.abort()
        for do in self._on_failure:
            do()


class Communicator(ABC):
    """A rank: one thread, one device. Made by `backends.open_ranks`.

    Attributes:
        rank: its number, from 0.   size: how many there are.   backend: its device.
    """

    def __init__(self, group: Group, rank: int, backend: Backend) -> None:
        self.group, self.rank, self.backend = group, rank, backend
        self._turn = 0

    @property
    def size(self) -> int:
        return self.group.size

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on the host, in their order. The device is not waited for."""
        self._turn += 1
        found = self.group.exchange(self.rank, self._turn, value)
        ended = [rank for rank, theirs in enumerate(found) if theirs is _ENDED]
        if 0 < len(ended) < self.size:
            raise RankError(
                f"rank {ended[0]} has ended while others go on; all ranks must make the same steps"
            )
        return found

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.gather(None)

    def end(self) -> None:
        """Until all ranks have ended; no other call may follow."""
        self.gather(_ENDED)

    @abstractmethod
    def all_reduce(self, arrays: Sequence[Array]) -> None:
        """Put the sum over all ranks in the place of each array: contiguous float32
        (or float64), of the same shapes on all ranks. It may be part of a program."""

    def begin(self) -> None:  # noqa: B027  (most have nothing to do)
        """The rank's own thread starts."""

    def close(self) -> None:  # noqa: B027
        """The rank's own thread ends; its programs are gone."""


class Alone(Communicator):
    """The only rank of its group."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(Group(1), 0, backend)

    def all_reduce(self, arrays: Sequence[Array]) -> None:
        """Nothing: the sum over one rank is there already."""
