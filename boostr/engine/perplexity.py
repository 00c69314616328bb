"""perplexity: how well a model predicts a text, by the protocol of llama.cpp's llama-perplexity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from boostr.engine.inputs import of_types
from boostr.engine.model import LanguageModel
from boostr.errors import NumericsError, OptionError
from boostr.io.tokenizer import required

_PASSES = 4  # over prompts, whose chunks are asked for at once


@dataclass(frozen=True)
class Perplexity:
    """What a text measured.

    Attributes:
        value: exp of the mean of -log p over the tokens that count.
        error: its standard error.   token_count: tokens that count.
        chunks: of `context` tokens each.   running: the value after each chunk.
    """

    value: float
    error: float
    token_count: int
    chunks: int
    context: int
    running: tuple[float, ...]


def perplexity(
    model: LanguageModel,
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """The perplexity of a text, comparable with what llama-perplexity prints.

    The text is tokenized whole, as it is, and cut into chunks of `context` tokens; the rest is
    left out. Where the tokenizer adds a BOS, it takes the place of the first token of each chunk.
    Tokens of the second half of a chunk count, each given all before it in the chunk.

    Args:
        context: tokens of a chunk, 4 or more.   chunks: at most so many, from the start.
        progress: called after each chunk: (chunks done, of how many, perplexity until here).
    Raises:
        OptionError: a text shorter than a chunk, or a chunk longer than the model's context.
        NumericsError: logits that are nan or infinite.
    """
    of_types("perplexity", _TYPES, locals())
    limit = model.config.max_position_embeddings
    if not 4 <= context <= limit:
        raise OptionError(f"perplexity: context must be 4 to {limit} tokens, got {context}")
    if chunks is not None and chunks < 1:
        raise OptionError(f"perplexity: chunks must be 1 or more, got {chunks}")
    tokenizer = required(model.tokenizer, model.source)
    ids = tokenizer.encode(text)
    bos = tokenizer.encode("")[:1]  # if it adds one
    count = min(len(ids) // context, chunks or len(ids))
    if count < 1:
        raise OptionError(
            f"perplexity: the text has {len(ids)} tokens, a chunk has {context}; give a longer "
            "text or a smaller context"
        )
    losses: list[np.ndarray] = []
    running: list[float] = []
    together = max(1, _PASSES * model.backend.prefill_chunk // context)
    for begin in range(0, count, together):
        numbers = range(begin, min(begin + together, count))
        taken = [[*bos, *ids[n * context + len(bos) : (n + 1) * context]] for n in numbers]
        for number, own in zip(numbers, model.engine.losses(taken, context // 2), strict=True):
            losses.append(_checked(own, model.source))
            running.append(_mean(losses)[0])
            if progress is not None:
                progress(number + 1, count, running[-1])
    value, error = _mean(losses)
    return Perplexity(value, error, sum(map(len, losses)), count, context, tuple(running))


def _checked(losses: np.ndarray, source: str) -> np.ndarray:
    if not np.isfinite(losses).all():
        raise NumericsError(
            f"{source}: logits are nan or infinite: the weights are damaged, or their values are "
            "too large for the dtype; try dtype='float32'"
        )
    return losses


def _mean(losses: list[np.ndarray]) -> tuple[float, float]:
    """(perplexity, its standard error)."""
    nll = np.concatenate(losses).astype(np.float64)
    value = float(np.exp(nll.mean()))
    return value, value * float(nll.std()) / max(len(nll) - 1, 1) ** 0.5


_TYPES = {
    "model": (LanguageModel,), "text": (str,), "context": (int,), "chunks": (int, type(None)),
}  # fmt: skip
