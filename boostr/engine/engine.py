"""Engine: every generation of a model, as rows of one batch that sequences join and leave.

A round is: take what callers have asked for, let the scheduler plan, start one decode step and
then a pass over prompts, read the oldest step. The device runs some steps ahead of what has been
read. There is no thread: the caller that waits for a piece runs rounds until it has one, for
everybody; others wait, and one of them goes on when it leaves.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np

from boostr import dispatch, env
from boostr.engine.blocks import BlockPool
from boostr.engine.kv_budget import Room, own_lengths, wanted_room
from boostr.engine.launches import Launches, Reading
from boostr.engine.request import Call, Outbox, Request
from boostr.engine.runner import Runner
from boostr.engine.scheduler import Scheduler
from boostr.engine.scoring import Scored, Scoring
from boostr.engine.sequence import Piece
from boostr.engine.sequence import Sequence as Generation
from boostr.engine.slots import Slots
from boostr.engine.steps import Steps
from boostr.engine.weight_watch import WeightWatch
from boostr.errors import BackendError, FallbackError

Made = TypeVar("Made")
_INTERRUPT = KeyboardInterrupt()
_TORN = "another caller's interrupt (Ctrl-C) came between a token and its text; generate it again"
_AHEAD = 16  # rows of prompts that are computed before one to decode them in is free
_PATIENCE = 1.0  # seconds, after which who waits looks again: an interrupt may cost it its notice


class Engine:
    """Generates and judges for one model, for any number of threads.

    Attributes:
        pool: its keys and values.   steps: its programs.
        kv_memory: bytes that keys and values may take; None: see `wanted_room`.
    """

    def __init__(self, runner: Runner) -> None:
        self.kv_memory: int | None = None
        self.runner, self.backend = runner, runner.backend
        self.pool, self._chunk = runner.new_pool(), self.backend.prefill_chunk
        self._context = runner.module.config.max_position_embeddings
        self._weights = WeightWatch(runner.module)
        self._changes, self._fits = 0, True  # of weights; whether the pool is the layers'
        self._lock, self._process = threading.Lock(), os.getpid()
        self._busy = False  # a caller is in a round
        self._unsure: BaseException | None = None  # what the last round broke off with
        self._waiting: dict[Outbox, None] = {}  # of callers that leave the rounds to it
        self._inbox: deque[Request | Scoring] = deque()
        self._calls: deque[Call] = deque()
        self._cancelled: deque[Request | Scoring] = deque()
        self._live: dict[Request | Scoring, None] = {}  # in order of arrival
        self._pending: deque[Reading | Scored] = deque()
        self._renew()
        if self.prefixes_off and env.DEBUG.integer() >= 1:
            print(f"boostr: prefixes are not shared: {self.prefixes_off}", file=sys.stderr)

    def _renew(self) -> None:
        """Empty rows and a scheduler without jobs, over the memory there is."""
        backend, pool = self.backend, self.pool
        columns = -(-self._context // pool.block_size)
        rows, ahead = backend.sequence_rows, 0 if pool.rows.row_bytes else _AHEAD
        slots = Slots(backend, rows + ahead, columns, len(pool.windows))
        self.steps = Steps(self.runner, pool, slots)
        self._scheduler = Scheduler(
            [BlockPool(count, pool.block_size) for count in pool.counts],
            pool.windows,
            self._row_count,
            backend.prefill_chunk,
            self._root(),
            share_prefixes=self.prefixes_off is None,
            chunk=self._chunk,
            beside=backend.prefill_beside,
            ahead=range(rows, rows + ahead),
        )
        self._launches = Launches(self.steps, self._scheduler)
        self._pending.clear()

    @property
    def prefixes_off(self) -> str | None:
        """Why equal beginnings of prompts are computed again; None where they are not."""
        return self.pool.rows.unshared

    @property
    def _row_count(self) -> int:
        """The most sequences at once; before the pool has rows, as if there were one."""
        rows = self.pool.rows
        return max(1, rows.count) if rows.row_bytes else self.backend.sequence_rows

    # -- for callers -----------------------------------------------------------------------------
    def pieces(self, sequences: Sequence[Generation], whole: bool = False) -> Generator[Piece]:
        """Pieces of all sequences as they come: asked for with the first of them, in the context
        of this call. What is left when the iterator is closed stops.

        whole: the caller wants all of them: the first comes when the last is there, and the caller
        is not woken between.

        Raises:
            OptionError: a sequence that the memory for keys and values does not hold.
            BackendError: a step failed; other errors of it as they are.
        """
        self._check_process()
        outbox = Outbox(self._lock, len(sequences) if whole else 0)
        by_length = self.runner.rotary.depends_on_length
        requests: list[Request] = []
        for sequence in sequences:
            before = requests[-1] if requests else None
            requests.append(Request(sequence, outbox, by_length, before))
        return self._served(requests, outbox, os.getpid())

    def losses(self, sequences: Sequence[Sequence[int]], first: int = 0) -> list[np.ndarray]:
        """-log p of tokens first + 1 .. of each sequence, each given all before it: float32.

        Raises as `pieces` does.
        """
        self._check_process()
        outbox = Outbox(self._lock, len(sequences))
        requests = [Scoring(ids, first, outbox) for ids in sequences]
        for _ in self._served(requests, outbox, os.getpid()):
            """All come when the last is there."""
        return [request.losses for request in requests]

    def between_rounds(self, fn: Callable[[], Made]) -> Made:
        """What `fn` gives, or raises. It runs in its caller's context, while no pass of the engine
        is being started."""
        self._check_process()
        call = Call(fn, Outbox(self._lock))
        self._calls.append(call)
        try:
            self._wait(call.outbox)
        finally:
            call.done = True  # nobody waits for it any more
        made = call.outbox.pieces.popleft()
        if isinstance(made, BaseException):
            raise made
        return made

    def _served(
        self, requests: Sequence[Request | Scoring], outbox: Outbox, process: int
    ) -> Generator[Any]:
        """What requests of this process put into their outbox, until each has ended."""
        left = len(requests)
        _check_began_here(process)
        try:
            with self._lock:
                self._inbox.extend(requests)
            while left:
                _check_began_here(process)
                self._wait(outbox)
                piece = outbox.pieces.popleft()
                if isinstance(piece, BaseException):
                    raise piece
                left -= piece.last
                yield piece
        finally:
            if left and os.getpid() == process:
                # without the lock: the collector may close a stream in a thread that holds it
                self._cancelled.extend([r for r in requests if not r.done])

    def _check_process(self) -> None:
        """After a fork the child has an engine of its own, without its parent's requests."""
        if os.getpid() != self._process:
            self._process, self._lock, self._busy = os.getpid(), threading.Lock(), False
            self._unsure, self._weights = None, WeightWatch(self.runner.module)
            for held in (self._inbox, self._calls, self._cancelled, self._live, self._waiting):
                held.clear()
            self._renew()

    def _wait(self, outbox: Outbox) -> None:
        """Return when there is something in the outbox; until then run rounds, or let others."""
        while not outbox.ready:
            leaves, mine = True, False
            try:
                with self._lock:
                    self._wait_for_turn(outbox)
                    if outbox.ready:
                        self._hand_over()
                        return
                    self._busy = mine = True
                self._mend()
                self._unsure = _INTERRUPT
                try:
                    self._round()
                except Exception as error:
                    self._unsure = error
                    self._mend()
                self._unsure, leaves = None, False
            finally:
                if mine:
                    self._busy = False  # before the lock, for which an interrupt may come
                with self._lock:
                    for other in self._waiting:
                        if other.ready:
                            other.turn.notify()
                    if leaves or outbox.ready:
                        self._hand_over()

    def _wait_for_turn(self, outbox: Outbox) -> None:
        """Wait, with the lock, until nobody runs rounds or there is something in the outbox."""
        if not self._busy:
            return
        self._waiting[outbox] = None
        try:
            while self._busy and not outbox.ready:
                outbox.turn.wait(_PATIENCE)
        except BaseException:  # an interrupt: whoever woke this caller counted on it
            del self._waiting[outbox]
            self._hand_over()
            raise
        del self._waiting[outbox]

    def _hand_over(self) -> None:
        """Have one of those who wait run the rounds, unless somebody does."""
        if not self._busy:
            for other in self._waiting:
                if not other.ready:
                    other.turn.notify()
                    return

    # -- a round ---------------------------------------------------------------------------------
    def _round(self) -> None:
        if self._calls:
            self._calls[0].run()  # it stays until then, so that an interrupt does not lose it
            self._calls.popleft()
        self._take_inbox()
        plan = self._scheduler.plan()
        self._launches.place(plan)
        runs = (request for request in self._live if request.job.state != "waiting")
        with dispatch.strict(any(request.strict for request in runs)):
            self._pending.extend(self._launches.run(plan))
        started = bool(plan.decoding or plan.chunks)
        if not (started or self._pending) and not self._scheduler.idle:
            raise BackendError("the engine has jobs and can start none of them")
        while len(self._pending) > (self.backend.run_ahead if started else 0):
            self._deliver(self._pending.popleft())
            started = True  # what was read may let others begin

    def _deliver(self, reading: Reading | Scored) -> None:
        if isinstance(reading, Scored):
            for ended in reading.ended():
                self._leave(ended)
            return
        for job, token, logprobs in reading.tokens():
            request: Request = job.owner
            try:
                if job.accepted < len(request.sequence.output):
                    request.check_again(token)
                else:
                    request.take(token, logprobs)
            except Exception as error:  # of this one's text
                request.fail(error)
            if token >= 0:
                self._scheduler.accept(job, token)
            if request.done:
                self._scheduler.finish(job)
                self._leave(request)

    def _leave(self, request: Request | Scoring) -> None:
        request.done, request.job.owner = True, None
        del self._live[request]

    # -- what comes and goes ---------------------------------------------------------------------
    def _take_inbox(self) -> None:
        while self._cancelled:
            request = self._cancelled[0]
            if request in self._live:
                self._scheduler.cancel(request.job)
                self._leave(request)
            request.done = True
            self._cancelled.popleft()
        new = [r for r in list(self._inbox) if not r.done and r not in self._live]
        if new:
            self._admit(new)
        # who is still wanted stays in the inbox until here, so that an interrupt loses nobody
        while self._inbox and (self._inbox[0].done or self._inbox[0] in self._live):
            self._inbox.popleft()

    def _admit(self, new: Sequence[Request | Scoring]) -> None:
        try:
            self._note_changes()
            fits = self._room_for(new)
        except Exception as error:
            for request in new:  # one that cannot run must not take the others with it
                if len(new) > 1:
                    self._admit([request])
                else:
                    request.fail(error)
            return
        if fits:  # else the pool grows once nobody stands in it
            for request in new:
                self._submit(request)

    def _submit(self, request: Request | Scoring) -> None:
        self._live[request] = None  # before it: an interrupt behind it must not lose the request
        try:
            self._scheduler.submit(request.job)
        except Exception as error:  # this one cannot run; the others can
            request.fail(error)
            del self._live[request]

    def _room_for(self, requests: Sequence[Request | Scoring]) -> bool:
        """Make the pool what these need, if that is not what it is; False: not yet, as others are
        at work and what they do must not be moved."""
        lengths = own_lengths([r.job for r in requests], self.pool.block_size)
        room = wanted_room(self.pool, lengths, self.backend, self.kv_memory)
        pool = self.pool
        if room == (pool.counts, self._chunk, pool.rows.count):
            return True
        needs = [self._scheduler.blocks_for(length) for length in lengths]
        one_by_one = bool(pool.rows.count or not pool.rows.row_bytes) and all(
            has >= need for each in needs for has, need in zip(pool.counts, each, strict=True)
        )
        if not self._scheduler.idle or self._pending:
            return one_by_one
        try:
            self._make(room)
        except BackendError:
            if not one_by_one:
                raise
        return True

    def _make(self, room: Room) -> None:
        """Resize the pool, in which nobody stands; one that shrinks forgets what it knows."""
        self._chunk = self._scheduler.chunk = room.chunk
        wanted, has = [*room.counts, room.rows], [*self.pool.counts, self.pool.rows.count]
        if wanted == has:
            return
        if any(new < old for new, old in zip(wanted, has, strict=True)):
            self.pool = self.runner.new_pool()
            self._renew()
        self.pool.grow(room.counts, room.rows)
        self._scheduler.grow(room.counts, self._row_count)
        self.steps.forget_programs()

    # -- changes and failures --------------------------------------------------------------------
    def _note_changes(self) -> None:
        """Forget what was computed with weights that have changed since."""
        replaced, written = self._weights.changed()
        if replaced:  # programs read the old ones
            self.steps.forget_programs()
            self._fits = self.pool.fits(self.runner.module.states())
        if replaced or written:
            self._changes += 1
            self._scheduler.rehash(self._root())
        if not self._fits:
            raise BackendError(
                "the layers of this model keep something else of a sequence than those that it was "
                "loaded with; put layers that keep the same in their place, or load it anew"
            )

    def _root(self) -> bytes:
        return b"%d" % self._changes

    def _mend(self) -> None:
        """After a round that broke off: nothing on the device is sure. Those who ran fail with the
        error, or begin again if it was meant for somebody else alone. An interrupt may come here,
        too: then the next caller does it again."""
        error = self._unsure
        if error is None:
            return
        for request in list(self._live):
            if request.done:  # the round broke off before it could leave
                self._leave(request)
        if isinstance(error, Exception):
            strict_only = isinstance(error, FallbackError)
            ran = [
                request
                for request in self._live
                if request.job.state != "waiting" and (request.strict or not strict_only)
            ]
            for request in ran or list(self._live):  # nobody's: it would only come again
                request.fail(error)
                self._leave(request)
            self._unsure = _INTERRUPT
        self._renew()
        for request in list(self._live):
            if request.torn:
                request.fail(BackendError(_TORN))
                self._leave(request)
                continue
            request.new_job()
            self._submit(request)
        self._unsure = None


def _check_began_here(process: int) -> None:
    if os.getpid() != process:
        raise BackendError("a stream goes on only in the process that began it")
