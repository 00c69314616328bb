"""PromptCache: the keys and values of one conversation, kept from turn to turn.

A prompt that begins with tokens of the last one (its answer included) is processed from where they
part. The logits are those of a fresh cache up to rounding, as sums are taken over other chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from boostr.engine.generate import generate
from boostr.engine.kv_cache import KVCache
from boostr.engine.runner import Runner
from boostr.engine.sequence import Piece
from boostr.engine.sequence import Sequence as Generation


class PromptCache:
    """Serves one generation after another of the same conversation, for one thread at a time. Made
    by `LanguageModel`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._cache: KVCache | None = None
        self._tokens: list[int] = []

    @property
    def token_count(self) -> int:
        """Tokens whose keys and values are kept."""
        return len(self._tokens) if self._cache else 0

    def generate(self, sequence: Generation) -> Iterator[Piece]:
        """As `generate.generate` for one sequence; what is kept survives an abandoned iterator."""
        cache, known = self._take(sequence.prompt, len(sequence.prompt) + sequence.limit)
        try:
            yield from generate(self._runner, [sequence], cache, [known])
        finally:
            # what has output has its prompt in the cache, and all of the output but the last
            if sequence.output and sequence.finish_reason != "error":
                self._cache, self._tokens = cache, [*sequence.prompt, *sequence.output[:-1]]

    def _take(self, prompt: Sequence[int], length: int) -> tuple[KVCache, int]:
        """A cache with room for `length` tokens, and how many of the prompt's are in it."""
        kept, self._cache = self._cache, None
        known = _common_prefix(self._tokens, prompt[:-1])  # one token must be left to process
        by_length = self._runner.rotary.depends_on_length  # then keys are rotated anew
        if kept is not None and known and not by_length:
            grown = kept.grown(length, len(self._tokens), known)
            if grown is not None:
                return grown, known
        return self._runner.new_cache(1, length), 0


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
