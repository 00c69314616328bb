"""Meter: how fast a run is, how well it uses its device, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from boostr.backends.collectives import Alone, Communicator
from boostr.bench.resources import resident_memory
from boostr.engine.packed import PackedBatch
from boostr.train.flops import ModelFlops, peak_flops

if TYPE_CHECKING:
    from boostr.engine.loaded import Loaded


class Rates(NamedTuple):
    """Of the steps since the last reading.

    Attributes:
        tokens: of samples, since the run was begun or resumed.
        tokens_per_second: of samples.   mfu: `ModelFlops` a second, as a share of what the device
            does at most; None where that is not known.
        memory: bytes that the device has given, on numpy those of the process; None if not known.
        seconds_left: of the rest of the run at this speed; None at the first reading, whose steps
            have compiled kernels and recorded the program.
    """

    tokens: int
    tokens_per_second: float
    mfu: float | None
    memory: int | None
    seconds_left: float | None


class Meter:
    """Counts what steps do.

    Args:
        peak: flops a second of the device; None: as its name says, if it is known.
        rank: whose batches are counted; rates are of all ranks, which read them at the same time.
    """

    def __init__(
        self, model: Loaded, peak: float | None = None, rank: Communicator | None = None
    ) -> None:
        self._backend, self._flops = model.backend, ModelFlops(model)
        self._rank = rank or Alone(model.backend)
        self._peak = peak_flops(model) if peak is None else peak
        self._tokens, self._readings = 0, 0
        self.restart()

    def restart(self) -> None:
        """Forget the time until now."""
        self._start, self._steps, self._new, self._work = time.perf_counter(), 0, 0, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count; the steps before are waited for."""
        self._backend.synchronize()
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, batches: Sequence[PackedBatch]) -> None:
        """A step was made on these."""
        self._steps += 1
        self._new += sum(map(len, batches))
        self._work += sum(map(self._flops.of, batches))

    def read(self, steps_left: int) -> Rates:
        """Of the steps since `restart`, or since the last reading."""
        seconds = time.perf_counter() - self._start
        new, work = map(sum, zip(*self._rank.gather((self._new, self._work)), strict=True))
        self._tokens += new
        memory = self._backend.used_memory()
        rates = Rates(
            self._tokens, new / seconds,
            None if self._peak is None else work / seconds / self._peak / self._rank.size,
            resident_memory() if memory is None else memory,
            steps_left * seconds / self._steps if self._readings else None,
        )  # fmt: skip
        self._readings += 1
        self.restart()
        return rates
