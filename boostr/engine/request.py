"""Request: one generation on its way through the engine, and what its caller waits for."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from boostr.dispatch import is_strict
from boostr.engine.job import Job
from boostr.engine.passes import Variant
from boostr.engine.sequence import Piece, Timings, TokenLogprobs
from boostr.engine.sequence import Sequence as Generation
from boostr.errors import BackendError


class Outbox:
    """What the requests of one call have for their caller, and where it waits for that.

    Attributes:
        pieces: not taken yet; an error ends the call.   turn: to be notified of them.
        awaited: requests that must end before the caller wants any.
    """

    def __init__(self, lock: threading.Lock, awaited: int = 0) -> None:
        self.pieces: deque[Any] = deque()
        self.turn, self.awaited = threading.Condition(lock), awaited

    @property
    def ready(self) -> bool:
        """Whether there is something that the caller waits for."""
        return self.awaited <= 0 and bool(self.pieces)


class Call:
    """A function that is run between two rounds, in the context of its caller.

    Attributes:
        outbox: what it gave or raised.   done: whether it has run, or is not wanted any more.
    """

    def __init__(self, fn: Callable[[], Any], outbox: Outbox) -> None:
        self._fn, self.outbox, self.done = fn, outbox, False
        self._context = copy_context()

    def run(self) -> None:
        if self.done:
            return
        try:
            made = self._context.run(self._fn)
        except Exception as error:
            made = error
        self.done = True
        self.outbox.pieces.append(made)


class Request:
    """A sequence, the pieces of it that its caller has not taken, and when things happened.

    Args:
        by_length: whether keys depend on the prompt's length: it shares those of its own alone.
        before: the one before it in its call; where it has the same prompt, both begin at once.
    Attributes:
        outbox: shared by the requests of one call.   job: what the scheduler knows of it.
        seed: of its draws.   strict: whether its caller forbids composites.
        torn: between a token and its piece: only an interrupt leaves it so.
    """

    def __init__(
        self,
        sequence: Generation,
        outbox: Outbox,
        by_length: bool = False,
        before: Request | None = None,
    ) -> None:
        options = sequence.options
        self.sequence, self.outbox = sequence, outbox
        self._salt = b"%d" % len(sequence.prompt) if by_length else b""
        self.seed = secrets.randbits(63) if options.seed is None else options.seed
        self.strict = is_strict()
        self.variant = Variant(
            options.temperature > 0, options.penalizes, options.logprobs is not None
        )
        self._leader: Request | None = None
        if before is not None and before._goes_before(sequence):
            self._leader = before._leader or before
        self.cached = 0
        self.done = self.torn = False
        self.job = self.new_job()
        self._start, self._first = time.perf_counter(), 0.0

    def new_job(self) -> Job:
        """The rest of it as a job: the prompt, and the output so far where it is not made again."""
        sequence, same = self.sequence, self.sequence.options.deterministic
        tokens = [*sequence.prompt, *(() if same else sequence.output)]
        leader = self._leader and self._leader.job
        self.job = Job(
            tokens, len(sequence.prompt), sequence.limit, self._salt, self, same, leader=leader
        )
        return self.job

    def _goes_before(self, other: Generation) -> bool:
        own = self.sequence
        apart = own.options.deterministic or other.options.deterministic
        return not apart and own.prompt == other.prompt

    def take(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """The next token; -1: its logits are not finite."""
        sequence, self.torn = self.sequence, True
        if not sequence.output:
            self._first = time.perf_counter()
        if token < 0:
            sequence.finish_reason = "error"
            self._put(sequence.stream.finish(), None, None)
        else:
            self._put(sequence.add(token), token, logprobs)

    def check_again(self, token: int) -> None:
        """A token that the caller has, made again.

        Raises BackendError for another one, which would make nonsense of those that follow.
        """
        place = self.job.accepted
        if token != self.sequence.output[place]:
            raise BackendError(
                f"token {place} of a deterministic request was {self.sequence.output[place]} and "
                f"is {token} now: the weights have changed, or the backend breaks its promise"
            )

    def fail(self, error: BaseException) -> None:
        self.done, self.outbox.awaited = True, 0
        self.outbox.pieces.append(error)

    def _put(self, text: str, token: int | None, logprobs: TokenLogprobs | None) -> None:
        sequence = self.sequence
        ended = sequence.finish_reason is not None
        timings = self._timings() if ended else None
        piece = Piece(text, token, sequence.index, sequence.finish_reason, logprobs, timings)
        self.torn, self.done = False, ended  # no call from here on: interrupts come behind calls
        self.outbox.awaited -= ended
        self.outbox.pieces.append(piece)

    def _timings(self) -> Timings:
        now, count = time.perf_counter(), len(self.sequence.output)
        first = self._first - self._start
        return Timings(
            first, first, now - self._first, len(self.sequence.prompt) - self.cached,
            max(0, count - 1),
        )  # fmt: skip
