"""Runner: forward passes of a decoder: prompts in packed chunks, decoding as a program."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boostr import autograd, ops
from boostr.backends.base import Backend
from boostr.engine.kv_cache import KVCache
from boostr.engine.prefill import ChunkProgram
from boostr.engine.rotary import Rotary
from boostr.engine.sampler import Sampler
from boostr.errors import BackendError
from boostr.models.base import Model
from boostr.nn.batch import Batch
from boostr.nn.states import Paged
from boostr.program import Program, capture
from boostr.quant.kv import KVForm
from boostr.tensor import Tensor

_HEAD_ROWS = 128  # tokens whose logits are made at once, where all are


@dataclass(frozen=True)
class _Part:
    """Tokens [start, stop) of the prompt in cache row `row`."""

    row: int
    start: int
    stop: int


class Runner:
    """A model on its backend, with its rope tables.

    Args:
        kv_form: how caches keep keys and values; None: as floats of the activations' dtype.
    Attributes:
        kv_token_bytes: what all layers keep of a token.
    Raises:
        OptionError: heads that the form cannot hold.
    """

    def __init__(self, module: Model, backend: Backend, kv_form: KVForm | None = None) -> None:
        self.module, self.backend, self.kv_form = module, backend, kv_form
        states = [s for kept in module.states() for s in kept if isinstance(s, Paged)]
        activations = module.activation_dtype
        self.kv_token_bytes = sum(s.bytes_per_token(activations, kv_form) for s in states)
        self.rotary = Rotary(module.ropes, backend)

    def tensor(self, values: Sequence[int] | np.ndarray) -> Tensor:
        """An int32 tensor on the model's backend."""
        return Tensor(np.asarray(values, np.int32), backend=self.backend)

    def new_cache(self, sequences: int, length: int) -> KVCache:
        """A cache for prompts that `prefill` processes."""
        chunk = min(self.backend.prefill_chunk, length)
        dtype = self.module.activation_dtype
        states = self.module.states()
        return KVCache(states, self.backend, sequences, length, chunk, dtype, self.kv_form)

    def packed(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """Whole sequences end to end, without a cache; `types` are those of their tokens."""
        lengths = [len(s) for s in sequences]
        positions = np.concatenate([np.arange(n) for n in lengths])
        places = self.tensor(positions)
        return Batch(
            self.tensor(np.concatenate([np.asarray(s) for s in sequences])),
            places,
            self.tensor(np.concatenate([[0], np.cumsum(lengths)])),
            self.rotary.prompt(positions, places, lengths, lengths),
            types=None if types is None else self.tensor(np.concatenate(types)),
        )

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits [T, V] of one sequence, without a cache."""
        with autograd.no_grad():
            return self.module.head(self.module.hidden(self.packed([ids])))

    def hidden_states(self, ids: Sequence[int]) -> list[Tensor]:
        """Of one sequence, [T, E] after the embedding and every layer; see `models.base.Model`."""
        with autograd.no_grad():
            return self.module.hidden_states(self.packed([ids]))

    def losses(
        self, ids: Sequence[int], first: int = 0, cache: KVCache | None = None
    ) -> np.ndarray:
        """-log p of tokens first + 1 .. of a sequence, each given all before it: float32.

        Runs in chunks over a cache (whose row 0 is overwritten), and never has the logits of more
        than _HEAD_ROWS tokens in memory.
        """
        end = len(ids) - 1
        if cache is None:
            cache = self.new_cache(1, len(ids))
        found = []
        for start in range(0, end, cache.chunk):
            stop = min(start + cache.chunk, end)
            hidden = self._forward(cache, [_Part(0, start, stop)], {0: ids})
            for at in range(max(start, first), stop, _HEAD_ROWS):
                to = min(at + _HEAD_ROWS, stop)
                targets = self.tensor(ids[at + 1 : to + 1])
                with autograd.no_grad():
                    logits = self.module.head(hidden[at - start : to - start])
                    found.append(ops.cross_entropy(logits, targets, reduction="none").numpy())
        return np.concatenate(found)

    def prefill(
        self, cache: KVCache, rows: Sequence[int], prompts: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Write prompts into rows of the cache; returns logits [B, V] after their last tokens.

        Chunks of several prompts share a forward pass. `starts` says how many tokens of each prompt
        the cache has already.
        """
        starts = starts or [0] * len(prompts)
        spans = [(row, start, len(p)) for row, start, p in zip(rows, starts, prompts, strict=True)]
        by_row = dict(zip(rows, prompts, strict=True))
        last: dict[int, Tensor] = {}
        for parts in _passes(spans, cache.chunk):
            hidden = self._forward(cache, parts, by_row)
            ends = np.cumsum([p.stop - p.start for p in parts])
            for part, end in zip(parts, ends, strict=True):
                if part.stop == len(by_row[part.row]):
                    row = hidden[int(end) - 1 : int(end)]
                    last[part.row] = Tensor.wrap(self.backend.copy(row.data), self.backend)
        with autograd.no_grad():
            return self.module.head(ops.core.concat([last[row] for row in rows]))

    def _forward(self, cache: KVCache, parts: Sequence[_Part], prompts: dict) -> Tensor:
        """Hidden states [T, E] of packed parts, which go into the cache.

        They may be overwritten by the next forward pass on this cache.
        """
        program = self._chunk_program(cache, parts)
        if program is not None:
            part = parts[0]
            ids = np.asarray(prompts[part.row][part.start : part.stop])
            return program.run(part.row, ids, part.start)
        ids = np.concatenate([prompts[p.row][p.start : p.stop] for p in parts])
        positions = np.concatenate([np.arange(p.start, p.stop) for p in parts])
        counts = [p.stop - p.start for p in parts]
        owners = self.tensor(np.repeat(np.arange(len(parts)), counts))
        tables = [self.tensor(t) for t in cache.block_tables([p.row for p in parts])]
        places = self.tensor(positions)
        lens = self.tensor([p.stop for p in parts])
        whole = [len(prompts[p.row]) for p in parts]
        batch = Batch(
            self.tensor(ids),
            places,
            self.tensor(np.concatenate([[0], np.cumsum(counts)])),
            self.rotary.prompt(positions, places, counts, whole),
            cache.views(tables, places, owners, lens),
        )
        with autograd.no_grad():
            return self.module.hidden(batch)

    def _chunk_program(self, cache: KVCache, parts: Sequence[_Part]) -> ChunkProgram | None:
        """The program for whole chunks on this cache; the first of them runs without."""
        size = parts[0].stop - parts[0].start
        alone = len(parts) == 1 and size == cache.chunk
        if not (self.backend.records_prefill and alone) or self.rotary.depends_on_length:
            return None
        if size not in cache.programs:
            cache.programs[size] = None
            return None
        if cache.programs[size] is None:
            cache.programs[size] = ChunkProgram(self, cache, size)
        return cache.programs[size]


def _passes(spans: Sequence[tuple[int, int, int]], chunk: int) -> Iterator[list[_Part]]:
    """Spans (row, start, stop) cut so that each forward pass has at most `chunk` tokens."""
    parts: list[_Part] = []
    room = chunk
    for row, start, stop in spans:
        while start < stop:
            take = min(room, stop - start)
            parts.append(_Part(row, start, start + take))
            start, room = start + take, room - take
            if room == 0:
                yield parts
                parts, room = [], chunk
    if parts:
        yield parts


class _Step:
    """What a decode step works on; calling it runs a step, or records one.

    It knows nothing of the program that keeps it: a cycle would hold a cache's memory until the
    garbage collector comes by.
    """

    def __init__(
        self, runner: Runner, cache: KVCache, sampler: Sampler, rows: Sequence[int],
        ids: Sequence[int], positions: Sequence[int],
    ) -> None:  # fmt: skip
        self._module, self._cache, self._sampler = runner.module, cache, sampler
        B = len(rows)
        self._ids = runner.tensor(ids)
        self._positions = runner.tensor(positions)
        self._kv_lens = runner.tensor(np.asarray(positions) + 1)
        self._cu = runner.tensor(np.arange(B + 1))
        self._owners = runner.tensor(np.arange(B))
        self._tables = [runner.tensor(t) for t in cache.block_tables(rows)]
        self._ropes = runner.rotary.decode(cache.length, self._positions)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """(chosen ids int32 [B], logits [B, V])."""
        batch = Batch(
            self._ids,
            self._positions,
            self._cu,
            self._ropes,
            self._cache.views(self._tables, self._positions, self._owners, self._kv_lens),
        )
        logits = self._module.head(self._module.hidden(batch))
        chosen = self._sampler.choose(logits)
        ops.advance(self._ids, chosen, [self._positions, self._kv_lens, self._sampler.draws])
        return chosen, logits


class DecodeLoop:
    """One token more for each of B sequences at a time: a program over state on the device.

    The device may be some steps ahead of what has been read; these change nothing but cache rows
    behind the sequences' ends and the sampler's counters.

    Args:
        rows: cache rows of the sequences.   ids: their newest tokens, not yet in the cache.
        positions: where these stand.   limit: the most steps that will be asked for.
        run_ahead: steps to start before an earlier one is read; 0 keeps `logits` in step with it.
    """

    def __init__(
        self,
        runner: Runner,
        cache: KVCache,
        sampler: Sampler,
        rows: Sequence[int],
        ids: Sequence[int],
        positions: Sequence[int],
        limit: int | None = None,
        run_ahead: int = 0,
    ) -> None:
        self._backend = runner.backend
        self._step = _Step(runner, cache, sampler, rows, ids, positions)
        room = cache.length - max(positions)
        self._left = room if limit is None else min(limit, room)
        self._ahead = 0 if cache.has_rings else run_ahead
        self._pending: deque[Callable[[], np.ndarray]] = deque()
        self._program: Program | None = None

    def step(self) -> tuple[np.ndarray, Tensor]:
        """The next step: (chosen ids int32 [B], logits [B, V], valid until the next call).

        With `run_ahead`, logits are those of the newest step that was started.
        """
        while self._left > 0 and len(self._pending) <= self._ahead:
            self._start()
        if self._program is None or not self._pending:
            raise BackendError("decode: the cache has no room for another token")
        return self._pending.popleft()(), self._program.outputs[1]

    def _start(self) -> None:
        """Start a step on the device, and the copy of what it chooses to the host."""
        if self._program is None:
            with self._backend.constant_weights():
                self._program = capture(self._step, self._backend)
        else:
            self._program.run()
        self._left -= 1
        ids: Tensor = self._program.outputs[0]
        self._pending.append(self._backend.start_read(ids.data))

    def calls(self) -> list[str]:
        """The name of each call of the program, which the first step records."""
        return [] if self._program is None else self._program.calls()

    def describe(self) -> list[str]:
        """See `Program.describe`."""
        return [] if self._program is None else self._program.describe()
