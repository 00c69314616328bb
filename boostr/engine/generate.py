"""The generation loop: packed prefill, then decode together until every sequence has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from boostr.engine.kv_cache import KVCache
from boostr.engine.runner import DecodeLoop, Runner
from boostr.engine.sampler import Sampler
from boostr.engine.sequence import Piece, Timings, TokenLogprobs
from boostr.engine.sequence import Sequence as Generation
from boostr.errors import NumericsError
from boostr.tensor import Tensor


class _Clock:
    """When things happened."""

    def __init__(self, prompt_tokens: int) -> None:
        self.start = time.perf_counter()
        self.prompt_tokens = prompt_tokens
        self.prompt_end = self.first = self.start
        self.decoded = 0

    def timings(self) -> Timings:
        now = time.perf_counter()
        return Timings(
            self.prompt_end - self.start,
            self.first - self.start,
            now - self.first,
            self.prompt_tokens,
            self.decoded,
        )


def generate(
    runner: Runner,
    sequences: Sequence[Generation],
    cache: KVCache,
    cached: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Pieces of all sequences as they come; row i of the cache is for sequence i.

    `cached` says how many tokens of each prompt are in the cache already.
    """
    known = list(cached or [0] * len(sequences))
    clock = _Clock(sum(len(s.prompt) for s in sequences) - sum(known))
    vocab = runner.module.config.vocab_size
    sampler = Sampler(
        runner.backend, [s.options for s in sequences], [s.prompt for s in sequences], vocab
    )
    prompts = [s.prompt for s in sequences]
    logits = runner.prefill(cache, range(len(sequences)), prompts, known)
    ids = sampler.choose(logits)
    sampler.draws.assign(sampler.draws + 1)
    chosen = ids.numpy()
    clock.prompt_end = clock.first = time.perf_counter()
    yield from _deliver(sequences, chosen, logits, clock)

    active = [s for s in sequences if s.finish_reason is None]
    rows = {id(s): row for row, s in enumerate(sequences)}
    living: list[Generation] = list(sequences)  # the sequences that the sampler's rows are for
    while active:
        sampler = sampler.select([living.index(s) for s in active], [len(s.output) for s in active])
        living = active
        loop = DecodeLoop(
            runner,
            cache,
            sampler,
            [rows[id(s)] for s in active],
            [s.output[-1] for s in active],
            [len(s.prompt) + len(s.output) - 1 for s in active],
            min(s.limit - len(s.output) for s in active),
            _run_ahead(runner, sampler, active),
        )
        while len(active) == len(living):
            chosen, logits = loop.step()
            clock.decoded += len(active)
            yield from _deliver(living, chosen, logits, clock)
            active = [s for s in living if s.finish_reason is None]


def finite(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of one sequence; NumericsError in place of one that ends with an error."""
    for count, piece in enumerate(pieces):
        if piece.finish_reason == "error":
            raise NumericsError(
                f"the logits after {count} generated tokens are nan or infinite: the weights are "
                "damaged, or their values are too large for the dtype; try dtype='float32'"
            )
        yield piece


def _run_ahead(runner: Runner, sampler: Sampler, active: Sequence[Generation]) -> int:
    """Steps to start before a token is read: none where the host looks at logits, or where steps
    that are thrown away would leave their tokens in the penalties of the sequences that go on."""
    if any(s.options.logprobs is not None for s in active):
        return 0
    return 0 if sampler.penalizes and len(active) > 1 else runner.backend.run_ahead


def _deliver(
    sequences: Sequence[Generation], chosen, logits: Tensor, clock: _Clock
) -> Iterator[Piece]:
    """Give each sequence its token; what that makes visible."""
    rows = logits.numpy() if any(s.options.logprobs is not None for s in sequences) else None
    for row, sequence in enumerate(sequences):
        token = int(chosen[row])
        if token < 0:
            sequence.finish_reason = "error"
            text = sequence.stream.finish()
            yield Piece(text, None, sequence.index, "error", None, clock.timings())
            continue
        wanted = sequence.options.logprobs
        logprobs = None
        if rows is not None and wanted is not None:
            logprobs = TokenLogprobs.of(rows[row], token, wanted)
        text = sequence.add(token)
        ended = sequence.finish_reason is not None
        yield Piece(
            text, token, sequence.index, sequence.finish_reason, logprobs,
            clock.timings() if ended else None,
        )  # fmt: skip
