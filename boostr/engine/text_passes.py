"""TextPasses: forward passes over whole texts packed end to end, for embeddings and classes.

Texts alike in length share a pass of a token budget. Where Python cannot start kernels as fast as
they run, passes are programs of few sizes: tokens that fill one up belong to no text, texts that
fill it up have no tokens.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Lock

import numpy as np

from boostr.engine.programs import Programs
from boostr.engine.runner import Runner
from boostr.engine.weight_watch import WeightWatch
from boostr.nn.batch import Batch
from boostr.nn.module import Module
from boostr.tensor import Tensor

Compute = Callable[[Batch], Tensor]  # what is wanted of a batch; equal ones share their programs
Group = list[tuple[int, Sequence[int]]]  # sequences and their numbers among all
Texts = Sequence[tuple[Sequence[int], Sequence[int] | None]]  # token ids, and types of them

_LEAST_TOKENS, _TOKENS_APART = 16, 1024  # of recorded passes: powers of two, then multiples
_MOST_PROGRAMS = 12
_IN_SIGHT = 512  # sequences that are sorted by length at a time


class TextPasses:
    """The passes of one model, for any number of threads, which take turns pass by pass.

    Args:
        modules: whose weights they read.
    Attributes:
        programs: those that were recorded.
    """

    def __init__(self, runner: Runner, modules: Sequence[Module]) -> None:
        self.runner, self.backend, self._modules = runner, runner.backend, modules
        self._begin()

    def _begin(self) -> None:
        self.programs = Programs(self.backend, _MOST_PROGRAMS)
        self._weights, self._turn = WeightWatch(*self._modules), Lock()
        self._process = os.getpid()

    def over(
        self,
        sequences: Iterable[Sequence[int]],
        compute: Compute,
        types: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[Group, np.ndarray]]:
        """(which sequences, what is computed of those packed, in float32, and rows behind it that
        mean nothing) of each pass. One is started before the one ahead of it is read, and sequences
        are asked for as they are needed: what makes them runs while the device computes."""
        if os.getpid() != self._process:  # another thread may have had the turn at the fork
            self._begin()
        with self._turn:
            if self._weights.changed()[0]:
                self.programs.forget()  # they read the old ones
        started: deque[tuple[Group, Callable[[], np.ndarray]]] = deque()
        for group in _groups(sequences, self.backend.text_tokens):
            texts = [(ids, None if types is None else types[i]) for i, ids in group]
            started.append((group, self._start(texts, compute)))
            while len(started) > min(1, self.backend.run_ahead):
                done, read = started.popleft()
                yield done, read()
        for done, read in started:
            yield done, read()

    def _start(self, texts: Texts, compute: Compute) -> Callable[[], np.ndarray]:
        T, B, typed = sum(len(ids) for ids, _ in texts), len(texts), texts[0][1] is not None
        recorded = self.backend.records_prefill and not self.runner.rotary.depends_on_length
        if recorded:
            T, B = _token_bucket(T), 1 << -(-(B - 1).bit_length() // 2) * 2  # a power of four
        key = (T, B, typed, compute)
        with self._turn:
            computed = self.programs.over(
                key, lambda: TextPass(self.runner, T, B, typed, compute), texts, recorded=recorded
            )
            return self.backend.start_read(computed.data)


class TextPass:
    """At most T tokens of at most B texts: what `compute` makes of them, in float32."""

    def __init__(
        self, runner: Runner, tokens: int, texts: int, typed: bool, compute: Compute
    ) -> None:
        T, B, self._runner, self._compute = tokens, texts, runner, compute
        self._room = (T, B)
        self._inputs = runner.tensor(np.zeros((3 if typed else 2) * T + B + 1))  # one upload a pass
        self._ids, self._positions = self._inputs[:T], self._inputs[T : 2 * T]
        self._cu = self._inputs[2 * T : 2 * T + B + 1]
        self._types = self._inputs[2 * T + B + 1 :] if typed else None
        self._ropes = None

    def fill(self, texts: Texts) -> None:
        """Say what the next run computes."""
        T, B = self._room
        lengths = [len(ids) for ids, _ in texts]
        ends = np.cumsum(lengths)
        values = np.zeros(self._inputs.size, np.int32)
        values[: ends[-1]] = np.concatenate([np.asarray(ids) for ids, _ in texts])
        positions = np.concatenate([np.arange(n) for n in lengths])
        values[T : T + ends[-1]] = positions
        values[2 * T + 1 : 2 * T + B + 1] = ends[-1]
        values[2 * T + 1 : 2 * T + len(ends) + 1] = ends
        if self._types is not None:
            behind = 2 * T + B + 1
            values[behind : behind + ends[-1]] = np.concatenate([own for _, own in texts if own])
        self._inputs.assign(values)
        rotary = self._runner.rotary
        if rotary.depends_on_length:
            self._ropes = rotary.prompt(positions, self._positions, lengths, lengths)
        elif self._ropes is None:
            self._ropes = rotary.decode(T, self._positions)

    def __call__(self) -> Tensor:
        assert self._ropes is not None
        batch = Batch(self._ids, self._positions, self._cu, self._ropes, types=self._types)
        return self._compute(batch).to("float32")


def _token_bucket(tokens: int) -> int:
    """Tokens of the recorded pass that so many get."""
    if tokens > _TOKENS_APART:
        return -(-tokens // _TOKENS_APART) * _TOKENS_APART
    return max(_LEAST_TOKENS, 1 << (tokens - 1).bit_length())


def _groups(sequences: Iterable[Sequence[int]], most: int) -> Iterator[Group]:
    """Those that are computed together, alike in length among _IN_SIGHT, of so many tokens at most.
    Of those in sight the last ones wait for others to fill their pass."""
    numbered, waiting = iter(enumerate(sequences)), []
    while seen := list(islice(numbered, _IN_SIGHT)):
        group, tokens = [], 0
        for own in sorted(waiting + seen, key=lambda own: len(own[1])):
            if group and tokens + len(own[1]) > most:
                yield group
                group, tokens = [], 0
            group.append(own)
            tokens += len(own[1])
        waiting = group
    if waiting:
        yield waiting
