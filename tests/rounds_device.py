"""RoundsDevice: a device that runs the scheduler's rounds on memory of which it knows who wrote it.

A place (group, block, offset) holds a number that stands for all tokens up to its own, the salt,
the version of the model, and the pass that wrote it. A token reads what its window shows, through
the tables that the rounds wrote, and must find its own prefix everywhere; that of a deterministic
job also the passes that it has alone. The token that follows is made of that number and the job's
seed, so every job has one right continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from boostr.engine.job import Job
from boostr.engine.round import Round

END, VOCABULARY = 0, 5


class Owner(NamedTuple):
    """What a job's owner says of it: whether END ends it, and how it draws."""

    ends: bool = False
    seed: int = 0


def contents(tokens: Sequence[int], salt: bytes) -> list[int]:
    """The number of each position."""
    found, last = [], int.from_bytes(salt, "little") + 17
    for token in tokens:
        last = hash((last, token))
        found.append(last)
    return found


def continuation(content: int, owner: Owner) -> int:
    return hash((content, owner.seed)) // 7 % VOCABULARY


def alone(job: Job) -> list[int]:
    """All tokens of a job: its limit of new ones, or up to END where that ends it."""
    tokens = job.tokens[: job.prompt_length]
    content = contents(tokens, job.salt)[-1]
    for _ in range(job.limit):
        tokens.append(continuation(content, job.owner))
        if job.owner.ends and tokens[-1] == END:
            break
        content = hash((content, tokens[-1]))
    return tokens


@dataclass
class Row:
    """`active`: it computes `token` at the next `position`, until it chooses an end or has `left`
    none. `version`: that of the model under which its first token was computed. `cut`: of the
    prompt of so many tokens, if it is deterministic."""

    tables: list[dict[int, int]]
    active: bool = False
    token: int = -1
    left: int = 0
    version: int = -1
    contents: list[int] = field(default_factory=list)
    cut: tuple[int, int] | None = None

    def own_pass(self, position: int) -> tuple[int, int] | None:
        """Where the pass begins and ends in which a deterministic job has this position."""
        if self.cut is None:
            return None
        cut, prompt = self.cut
        if position >= prompt:
            return position, position + 1
        start = position // cut * cut
        return start, min(start + cut, prompt)


class RoundsDevice:
    """`cut`: of deterministic jobs.   `decoding`: the first so many rows are stepped."""

    def __init__(self, windows: Sequence[int | None], size: int, cut: int, decoding: int) -> None:
        self.windows, self.size, self.cut, self.version = windows, size, cut, 0
        self.decoding = decoding
        self.rows: dict[int, Row] = {}
        self.memory: dict[tuple[int, int, int], tuple[int, int, object]] = {}

    def execute(self, found: Round) -> list[tuple[Job, int, int | None]]:
        """Run a round. What each step chose: (job, its `preemptions`, token or None: it had ended
        on the device)."""
        for _, source, target in found.moves:
            assert source >= self.decoding > target
            self.rows[target] = self.rows.pop(source)
        for row in found.cleared:
            self.rows.pop(row, None)
        assert len({write[:3] for write in found.writes}) == len(found.writes), "a race"
        for row, group, column, block in found.writes:
            self._row(row).tables[group][column] = block
        results = [(job, job.preemptions, self._step(job)) for job in found.decoding]
        decoding = {job.row for job in found.decoding}
        assert all(row < self.decoding for row in decoding)
        apart = {*decoding, *range(self.decoding, 2 * self.decoding + 99)}
        rest = [row for i, row in self.rows.items() if i not in apart]
        assert all(not row.active or row.cut for row in rest)
        for chunk in reversed(found.chunks):  # each stands for itself, in whatever order
            token = self._compute(chunk.job, chunk.start, chunk.stop)
            if chunk.final:
                self._choose(chunk.job, token, chunk.job.limit - chunk.job.launched)
                results.append((chunk.job, chunk.job.preemptions, token))
                results += [self._join(job, chunk.job) for job in chunk.alike]
        self._copy([copy[1:] for copy in found.copies])
        return results

    def _copy(self, copies: list[tuple[int, int, int]]) -> None:
        places = [(group, source, block, o) for group, source, block in copies
                  for o in range(self.size)]  # fmt: skip
        read = [self.memory.get((group, source, o)) for group, source, _, o in places]
        for (group, _, block, offset), value in zip(places, read, strict=True):
            self.memory.pop((group, block, offset), None)
            if value is not None:
                self.memory[group, block, offset] = value

    def lose_memory(self) -> None:
        self.rows.clear()
        self.memory.clear()

    def _row(self, row: int) -> Row:
        return self.rows.setdefault(row, Row([{} for _ in self.windows], version=self.version))

    def _step(self, job: Job) -> int | None:
        row = self.rows[job.row]
        if not row.active:
            assert not row.cut, "its last token is known"
            return None
        row.contents.append(hash((row.contents[-1], row.token)))
        position = len(row.contents) - 1
        self._write(row, position, (position, position + 1))
        self._read(row, position)
        token = continuation(row.contents[-1], job.owner)
        self._choose(job, token, row.left - 1)
        return token

    def _choose(self, job: Job, token: int, left: int) -> None:
        row = self.rows[job.row]
        row.token, row.left = token, left
        row.active = left > 0 and not (job.owner.ends and token == END)

    def _compute(self, job: Job, start: int, stop: int) -> int:
        row = self._row(job.row)
        row.contents = contents(job.tokens[:stop], job.salt)
        row.cut = (self.cut, job.prompt_length) if job.deterministic else None
        for position in range(start, stop):
            self._write(row, position, (start, stop))
        for position in range(start, stop):
            self._read(row, position)
        return continuation(row.contents[-1], job.owner)

    def _join(self, job: Job, leader: Job) -> tuple[Job, int, int | None]:
        """The first step of a job that goes on from its leader's prompt."""
        row, its = self._row(job.row), self.rows[leader.row]
        row.contents, row.version = list(its.contents), its.version
        token = continuation(row.contents[-1], job.owner)
        self._choose(job, token, job.limit - job.launched)
        return job, job.preemptions, token

    def _write(self, row: Row, position: int, written: tuple[int, int]) -> None:
        column, offset = divmod(position, self.size)
        for group, table in enumerate(row.tables):
            block = table[column]
            assert block >= 0, "a write to no block"
            others = (o for o in self.rows.values() if o is not row and o.contents)
            assert all(other.tables[group].get(column) != block for other in others), "shared"
            self.memory[group, block, offset] = (row.contents[position], row.version, written)

    def _read(self, row: Row, position: int) -> None:
        for group, (table, window) in enumerate(zip(row.tables, self.windows, strict=True)):
            first = 0 if window is None else max(0, position - window + 1)
            for seen in range(first, position + 1):
                column, offset = divmod(seen, self.size)
                content, version, written = self.memory[group, table[column], offset]
                assert content == row.contents[seen], "another prefix"
                assert version >= row.version, "keys and values of an older model"
                assert not row.cut or written == row.own_pass(seen), "another pass"
