"""LanguageModel: a loaded decoder with its tokenizer: generate, stream, logits, score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boostr.backends.base import Backend
from boostr.engine.generate import generate
from boostr.engine.kv_cache import KVCache
from boostr.engine.options import SamplingOptions
from boostr.engine.prompt_cache import PromptCache
from boostr.engine.runner import Runner
from boostr.engine.sequence import Completion, Piece, TokenLogprobs, Usage
from boostr.engine.sequence import Sequence as Generation
from boostr.errors import OptionError, TokenizerError
from boostr.io.tokenizer import Tokenizer
from boostr.models.base import Model, ModelConfig

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        nll: sum of -log p of each token given those before it, in nats.   token_count: of how many.
    """

    nll: float
    token_count: int

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll / self.token_count))


class LanguageModel:
    """A decoder that is ready to use. Made by `boostr.load`; one generation at a time.

    Attributes:
        tokenizer, config, backend, module: what it is made of.
        source: where it came from.
    """

    def __init__(
        self,
        module: Model,
        tokenizer: Tokenizer,
        backend: Backend,
        source: str,
        eos_ids: Sequence[int] = (),
    ) -> None:
        self.module, self.tokenizer, self.backend, self.source = module, tokenizer, backend, source
        self.config: ModelConfig = module.config
        self.eos_ids = frozenset(eos_ids) | frozenset(tokenizer.eos_ids)
        self.runner = Runner(module, backend)

    # -- generation ------------------------------------------------------------------------------
    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        options: SamplingOptions | None = None,
        **changes: Any,
    ) -> Completion:
        """Continue a prompt (text or token ids), or answer `messages` through the chat template.

        `changes` are fields of `SamplingOptions`, over those of `options`.

        Raises:
            OptionError: an option out of range, or a prompt that the context does not hold.
        """
        sequence = self._start(0, prompt, messages, _options(options, changes))
        return self._complete([sequence])[0]

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        options: SamplingOptions | None = None,
        prompt_cache: PromptCache | None = None,
        **changes: Any,
    ) -> Iterator[Piece]:
        """As `generate`, a piece at a time; the last has `finish_reason` and `timings`.

        With a `prompt_cache` (see `new_prompt_cache`) the tokens that the prompt shares with the
        one before are not processed again.
        """
        sequence = self._start(0, prompt, messages, _options(options, changes))
        if prompt_cache is not None:
            return prompt_cache.generate(sequence)
        return generate(self.runner, [sequence], self._cache([sequence]))

    def new_prompt_cache(self) -> PromptCache:
        """What a conversation keeps from turn to turn; for `stream`."""
        return PromptCache(self.runner)

    def generate_batch(
        self,
        prompts: Sequence[Prompt | Messages],
        *,
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        **changes: Any,
    ) -> list[Completion]:
        """Completions of prompts of any lengths, decoded together; each is as it would be alone.

        A prompt is a text, token ids, or messages. `options` may be one for all or one for each.
        """
        if isinstance(options, Sequence):
            if len(options) != len(prompts):
                raise OptionError(f"options: expected {len(prompts)}, got {len(options)}")
            chosen = [_options(o, changes) for o in options]
        else:
            chosen = [_options(options, changes)] * len(prompts)
        sequences = []
        for index, (prompt, own) in enumerate(zip(prompts, chosen, strict=True)):
            chat = _is_messages(prompt)
            sequences.append(
                self._start(index, None if chat else prompt, prompt if chat else None, own)  # type: ignore[arg-type]
            )
        return self._complete(sequences) if sequences else []

    def _start(
        self, index: int, prompt: Prompt | None, messages: Messages | None, options: SamplingOptions
    ) -> Generation:
        ids = self.encode(prompt, messages)
        context = self.config.max_position_embeddings
        if len(ids) >= context:
            raise OptionError(
                f"the prompt has {len(ids)} tokens, and the model's context holds {context} with "
                "the answer; shorten the prompt"
            )
        limit = min(options.max_tokens, context - len(ids))
        return Generation.start(index, ids, options, limit, self.eos_ids, self.tokenizer)

    def encode(self, prompt: Prompt | None, messages: Messages | None = None) -> list[int]:
        """The token ids of a prompt or of a conversation, checked."""
        if (prompt is None) == (messages is None):
            raise OptionError("expected either a prompt or messages")
        if messages is not None:
            text = self.tokenizer.apply_chat_template(messages)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        elif isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        else:
            ids = [int(i) for i in prompt or ()]
        if not ids:
            bos = self.tokenizer.bos_id
            if bos is None:
                raise OptionError("the prompt is empty: it has no tokens")
            ids = [bos]
        self._check_ids(ids)
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab = self.config.vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise TokenizerError(
                f"token id {wrong} is not in the model's vocabulary 0..{vocab - 1}"
            )

    def _cache(self, sequences: Sequence[Generation]) -> KVCache:
        return self.runner.new_cache(
            len(sequences), max(len(s.prompt) + s.limit for s in sequences)
        )

    def _complete(self, sequences: list[Generation]) -> list[Completion]:
        texts = ["" for _ in sequences]
        logprobs: list[list[TokenLogprobs]] = [[] for _ in sequences]
        timings = {}
        for piece in generate(self.runner, sequences, self._cache(sequences)):
            texts[piece.index] += piece.text
            if piece.logprobs is not None:
                logprobs[piece.index].append(piece.logprobs)
            if piece.timings is not None:
                timings[piece.index] = piece.timings
        return [
            Completion(
                texts[s.index],
                s.output,
                s.finish_reason or "length",
                Usage(len(s.prompt), len(s.output)),
                timings[s.index],
                logprobs[s.index] if s.options.logprobs is not None else None,
            )
            for s in sequences
        ]

    # -- looking at the model --------------------------------------------------------------------
    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of one sequence, without a cache."""
        if not len(token_ids):
            raise OptionError("logits: expected at least one token")
        self._check_ids(token_ids)
        return self.runner.logits(token_ids).numpy()

    def hidden_states(self, token_ids: Sequence[int]) -> list[np.ndarray]:
        """Hidden states float32 [T, E] of one sequence: after the embedding, after each layer, the
        last after the final norm (transformers' `output_hidden_states`)."""
        if not len(token_ids):
            raise OptionError("hidden_states: expected at least one token")
        self._check_ids(token_ids)
        return [h.to("float32").numpy() for h in self.runner.hidden_states(token_ids)]

    def score(self, text: Prompt) -> Score:
        """Negative log-likelihood of a text (or token ids) of two tokens or more."""
        ids = self.encode(text)
        context = self.config.max_position_embeddings
        if not 2 <= len(ids) <= context:
            raise OptionError(f"score: expected 2 to {context} tokens, got {len(ids)}")
        return Score(self.runner.nll(ids), len(ids) - 1)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Refused: a decoder has no sentence embeddings of its own."""
        raise OptionError(
            f"embed: {self.config.model_type!r} is a decoder; load an encoder such as a "
            "sentence-transformers folder"
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(w.nbytes for w in self.module.weights().values())

    @property
    def parameter_count(self) -> int:
        """Weights counted as numbers; packed ones by their logical shape."""
        weights = self.module.weights().values()
        return sum(w.size for w in weights)


def _options(options: SamplingOptions | None, changes: Mapping[str, Any]) -> SamplingOptions:
    try:
        return replace(options or SamplingOptions(), **changes)
    except TypeError:
        known = SamplingOptions.__dataclass_fields__
        wrong = next(name for name in changes if name not in known)
        raise OptionError(f"unknown option {wrong!r}; known: {', '.join(known)}") from None


def _is_messages(prompt: Any) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
