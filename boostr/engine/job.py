"""Job: a sequence that is generated, or only computed, as the scheduler knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "prefilling", "running", "done"]


@dataclass(eq=False, slots=True)
class Job:
    """One row of generation.

    Attributes:
        tokens: the prompt, then the accepted output; only `Scheduler.accept` appends.
        limit: the most tokens that are generated.
        salt: jobs share the blocks of equal prefixes only with those of the same salt.
        owner: what the engine hangs on it.
        shares: whether it takes what others computed of its prompt, and leaves it for others.
        leader: an earlier one of the same prompt, with which it begins; neither is deterministic.
        deterministic: what it computes does not depend on others: see `Scheduler`.
        state: waiting in the queue; prefilling and running in a row; done.
        row: of the device's state.
        computed: tokens whose keys and values are written by what was planned.
        launched: output tokens whose steps were planned; those of them that are not accepted are in
            flight. A running job has computed = prompt_length + launched - 1.
        tables: for each group of layers block ids by column, column j for tokens from j * size on;
            -1: never given, or given back.
        cached: tokens of the prompt that were found computed when the job was first admitted.
        preemptions: how often it lost its row. What was in flight then is not accepted: it is made
            again, so the engine keeps this number with each step and drops what has another one.
    """

    tokens: list[int]
    prompt_length: int
    limit: int
    salt: bytes = b""
    owner: Any = None
    deterministic: bool = False
    shares: bool = True
    leader: Job | None = None
    state: State = field(default="waiting", init=False)
    row: int | None = field(default=None, init=False)
    computed: int = field(default=0, init=False)
    launched: int = field(default=0, init=False)
    tables: list[list[int]] = field(default_factory=list, init=False)
    cached: int = field(default=0, init=False)
    preemptions: int = field(default=0, init=False)
    # the scheduler's own: place in the order of arrival; the most blocks of each group that it ever
    # holds; `computed` at which a row needs more than a step; first column that is not given back
    # in each group
    order: int = field(default=-1, init=False, repr=False)
    most: list[int] = field(default_factory=list, init=False, repr=False)
    pause: int = field(default=0, init=False, repr=False)
    first: list[int] = field(default_factory=list, init=False, repr=False)
    # of the prefix cache: keys of full blocks (None: not to be entered), how many are entered, the
    # key that it waits for
    keys: list[bytes] | None = field(default=None, init=False, repr=False)
    entered: int = field(default=0, init=False, repr=False)
    awaited: bytes | None = field(default=None, init=False, repr=False)

    @property
    def accepted(self) -> int:
        """Output tokens that are known."""
        return len(self.tokens) - self.prompt_length

    @property
    def same(self) -> Job | None:
        """Its leader, as long as both have the same tokens."""
        leader = self.leader
        return None if leader is None or self.accepted or leader.accepted else leader

    def held(self, group: int) -> int:
        """Blocks of a group that it holds."""
        return len(self.tables[group]) - self.first[group]
