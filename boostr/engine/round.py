"""Round: what the scheduler wants to be launched next."""

from __future__ import annotations

from dataclasses import dataclass, field

from boostr.engine.job import Job


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, stop) of a job to compute; `final`: the next token is chosen after them, also
    those of the jobs `alike`, which have the same tokens."""

    job: Job
    start: int
    stop: int
    final: bool
    alike: list[Job] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """What to launch, in this order.

    Attributes:
        moves: (job, from, to): rows that are decoded from now on elsewhere.
        cleared: rows whose jobs have left, which must stop.
        writes: (row, group, column, block) of the block tables; a block of -1: none.
        decoding: running jobs that compute one token each.
        chunks: of prompts, in order of arrival; the rows of a final one run from the next round on.
        copies: (row, group, source, block): what a row's last block begins as; all are read first.
    """

    moves: list[tuple[Job, int, int]] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    writes: list[tuple[int, int, int, int]] = field(default_factory=list)
    decoding: list[Job] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int, int, int]] = field(default_factory=list)

    def end_of(self, job: Job | None) -> Chunk | None:
        """The last chunk of a job's prompt, if it is in this round."""
        return next((chunk for chunk in self.chunks if chunk.final and chunk.job is job), None)

    def leave_out(self, rows: set[int]) -> None:
        """Without jobs that have lost their rows, which these are."""
        self.decoding = [job for job in self.decoding if job.row is not None]
        self.chunks = [chunk for chunk in self.chunks if chunk.job.row is not None]
        for chunk in self.chunks:
            chunk.alike[:] = [job for job in chunk.alike if job.row is not None]
        self.writes = [write for write in self.writes if write[0] not in rows]
        self.copies = [copy for copy in self.copies if copy[0] not in rows]
