"""Scoring: a sequence whose tokens are judged, not continued, on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boostr import ops
from boostr.autograd import no_grad
from boostr.dispatch import is_strict
from boostr.engine.job import Job
from boostr.engine.request import Outbox
from boostr.engine.round import Chunk
from boostr.engine.runner import Runner
from boostr.ops import core
from boostr.tensor import Tensor

_HEAD_ROWS = 128  # tokens whose logits are in memory at once


class Scoring:
    """-log p of the tokens first + 1 .. of a sequence, each given all before it.

    It is a prompt without its last token. What it computes it does not share: what another one has
    computed would not be judged.

    Attributes:
        losses: float32, known once it is done.   last: whether nothing of it follows in the outbox.
        outbox, job, strict, done, torn: as those of `Request`.
    """

    last, torn = True, False

    def __init__(self, ids: Sequence[int], first: int, outbox: Outbox) -> None:
        self._ids, self._first, self.outbox = ids, first, outbox
        self.targets = np.array(ids[first + 1 :], np.int32)
        self.losses = np.zeros(len(self.targets), np.float32)
        self.strict, self.done = is_strict(), False
        self.job = self.new_job()

    def new_job(self) -> Job:
        """All of it as a job."""
        tokens = list(self._ids[:-1])
        self.job = Job(tokens, len(tokens), limit=1, owner=self, shares=False)
        return self.job

    def of_chunk(self, chunk: Chunk) -> range:
        """Which of its losses the hidden states of a chunk give."""
        return range(*(max(0, at - self._first) for at in (chunk.start, chunk.stop)))

    def take(self, place: range, losses: np.ndarray, final: bool) -> None:
        """Those of a chunk; `final`: of the last one."""
        self.losses[place.start : place.stop] = losses
        if final:
            self.done = True
            self.outbox.awaited -= 1
            self.outbox.pieces.append(self)

    def fail(self, error: BaseException) -> None:
        self.done, self.outbox.awaited = True, 0
        self.outbox.pieces.append(error)


@dataclass(frozen=True)
class Scored:
    """Losses of a pass that was started, and whose they are."""

    reads: Sequence[Callable[[], np.ndarray]]
    places: Sequence[tuple[Scoring, range, bool]]

    @classmethod
    def of_pass(cls, runner: Runner, hidden: Tensor, chunks: Sequence[Chunk]) -> Scored:
        """Of hidden states [T, E] of chunks, packed."""
        start, rows, targets, places = 0, [], [], []
        for chunk in chunks:
            request: Scoring = chunk.job.owner
            start += chunk.stop - chunk.start
            place = request.of_chunk(chunk)
            rows.append(np.arange(start - len(place), start))
            targets.append(request.targets[place.start : place.stop])
            places.append((request, place, chunk.final))
        wanted, given, reads = np.concatenate(rows), np.concatenate(targets), []
        for at in range(0, len(wanted), _HEAD_ROWS):
            piece = slice(at, at + _HEAD_ROWS)
            with no_grad():
                logits = runner.module.head(core.take(hidden, runner.tensor(wanted[piece])))
                own = runner.tensor(given[piece])
                losses = ops.cross_entropy(logits, own, reduction="none")
            reads.append(runner.backend.start_read(losses.data))
        return cls(reads, places)

    def ended(self) -> Iterator[Scoring]:
        """Give everybody theirs; those who have all now. Waits for the device."""
        found = np.concatenate([np.zeros(0, np.float32), *(read() for read in self.reads)])
        at = 0
        for request, place, final in self.places:
            own = found[at : at + len(place)]
            at += len(place)
            if not request.done:
                request.take(place, own, final)
                if request.done:
                    yield request
