"""Sequence: one prompt on its way to a completion, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from boostr.engine.options import SamplingOptions
from boostr.engine.text import TextStream
from boostr.io.detokenizer import NoText
from boostr.io.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the model's own distribution (before penalties).

    Attributes:
        token_id, logprob: the chosen token.   top: (token id, logprob) of the most likely ones.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of_row(
        cls, token_id: int, arrays: tuple[np.ndarray, ...], row: int, count: int
    ) -> TokenLogprobs:
        """From a row of what `ops.top_logprobs` gives."""
        chosen, ids, logprobs = (array[row] for array in arrays)
        top = zip(ids[:count].tolist(), logprobs[:count].tolist(), strict=True)
        return cls(token_id, float(chosen), tuple(top))


@dataclass(frozen=True)
class Usage:
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds, from when a sequence was asked for.

    Attributes:
        prompt_seconds, first_token_seconds: until its first token.   decode_seconds: from there on.
        prompt_tokens: of the prompt, those that were computed, not found.
        decoded_tokens: those behind the first.
    """

    prompt_seconds: float
    first_token_seconds: float
    decode_seconds: float
    prompt_tokens: int
    decoded_tokens: int

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Completion:
    """The outcome of a generation.

    Attributes:
        finish_reason: "stop" (an end token or a stop text), "length" (max_tokens or the context),
            in a batch also "error" (logits that are nan or infinite).
        token_ids: all generated tokens, an end token included.
        logprobs: one entry a token if they were asked for.
        others: the further ones of n.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprobs] | None = None
    others: tuple[Completion, ...] = ()

    @property
    def choices(self) -> tuple[Completion, ...]:
        """All n completions of the prompt, this one first."""
        return (self, *self.others)


@dataclass(frozen=True)
class Piece:
    """One step of a stream. The last has a finish_reason, and timings.

    Attributes:
        index: which of the n continuations it belongs to; each has a last piece.
    """

    text: str
    token_id: int | None
    index: int = 0
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None
    timings: Timings | None = None

    @property
    def last(self) -> bool:
        """Whether it ends its continuation."""
        return self.finish_reason is not None


@dataclass
class Sequence:
    """State of one generation. `limit` is the most tokens it may generate."""

    index: int
    prompt: list[int]
    options: SamplingOptions
    limit: int
    eos_ids: frozenset[int]
    stream: TextStream
    output: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    @classmethod
    def start(
        cls, index: int, prompt: list[int], options: SamplingOptions, limit: int,
        eos_ids: frozenset[int], tokenizer: Tokenizer | None,
    ) -> Sequence:  # fmt: skip
        if tokenizer is None:
            stream = TextStream(NoText())
        else:
            detokenizer = tokenizer.stream(after=prompt)
            stream = TextStream(detokenizer, options.stop, tokenizer.special_text)
        ends = frozenset() if options.ignore_eos else eos_ids
        return cls(index, prompt, options, limit, ends, stream)

    def add(self, token_id: int) -> str:
        """Take a generated token; the text to show now. Sets `finish_reason` at the end."""
        self.output.append(token_id)
        if token_id in self.eos_ids:
            self.finish_reason = "stop"
            return self.stream.finish()
        text = self.stream.add(token_id)
        if self.stream.stopped:
            self.finish_reason = "stop"
        elif len(self.output) >= self.limit:
            self.finish_reason = "length"
            text += self.stream.finish()
            if self.stream.stopped:
                self.finish_reason = "stop"
        return text
