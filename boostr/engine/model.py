"""LanguageModel: a loaded decoder with its tokenizer: generate, stream, logits, score."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.base import Backend
from boostr.engine.engine import Engine
from boostr.engine.inputs import Chat, Messages, Prompt, id_list, is_messages, prompt_list
from boostr.engine.loaded import Loaded
from boostr.engine.options import SamplingOptions
from boostr.engine.runner import Runner
from boostr.engine.sequence import Completion, Piece, TokenLogprobs, Usage
from boostr.engine.sequence import Sequence as Generation
from boostr.errors import NumericsError, OptionError, TokenizerError
from boostr.io.tokenizer import Tokenizer, required
from boostr.models.base import Model
from boostr.quant.kv import KVForm

if TYPE_CHECKING:
    from boostr.engine.answers import QuestionReranker
    from boostr.engine.reranker import Ranked


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


class LanguageModel(Loaded):
    """A decoder that is ready to use, by several threads too. Made by `boostr.load`.

    Attributes:
        tokenizer, config, backend, module: what it is made of. Without tokenizer files `tokenizer`
            is None: token ids work, texts are refused, and what is generated has no text.
        source: where it came from.
    """

    is_a = "a decoder, which generates text"

    def __init__(
        self,
        module: Model,
        tokenizer: Tokenizer | None,
        backend: Backend,
        source: str,
        eos_ids: Sequence[int] = (),
        kv_form: KVForm | None = None,
    ) -> None:
        self.module, self.tokenizer, self.backend, self.source = module, tokenizer, backend, source
        self.config = module.config
        self.eos_ids = frozenset(eos_ids) | frozenset(tokenizer.eos_ids if tokenizer else ())
        self.runner = Runner(module, backend, kv_form)
        self.engine = Engine(self.runner)
        self._rankers: dict[str | None, QuestionReranker] = {}  # by template, with their programs

    # -- generation ------------------------------------------------------------------------------
    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        template_arguments: Mapping[str, Any] | None = None,
        options: SamplingOptions | None = None,
        **changes: Any,
    ) -> Completion:
        """Continue a prompt (text or token ids), or answer `messages` through the chat template.

        Args:
            tools: functions that the template may offer, as JSON schemas.
            continue_final_message: go on with the last message instead of answering it, or with
                what it has under this key, such as "reasoning_content".
            template_arguments: further variables of the template, such as enable_thinking.
            changes: fields of `SamplingOptions`, over those of `options`. With n above 1 the
                result is the first of its `choices`.

        Raises:
            OptionError: an option out of range, or a prompt that the context does not hold.
            NumericsError: the model's logits are nan or infinite.
        """
        chat = Chat(tools, continue_final_message, template_arguments)
        sequences = self._start(0, prompt, messages, chat, _options(options, changes))
        (found,) = self._complete([sequences], _finite(self.engine.pieces(sequences, whole=True)))
        return found

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        template_arguments: Mapping[str, Any] | None = None,
        options: SamplingOptions | None = None,
        **changes: Any,
    ) -> Iterator[Piece]:
        """As `generate`, a piece at a time; the last has `finish_reason` and `timings`.

        Pieces of several choices (n) come in turns; `index` says whose each is.
        A stream that is closed, or dropped, stops.
        """
        chat = Chat(tools, continue_final_message, template_arguments)
        sequences = self._start(0, prompt, messages, chat, _options(options, changes))
        return _finite(self.engine.pieces(sequences))

    def generate_batch(
        self,
        prompts: Sequence[Prompt | Messages],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        template_arguments: Mapping[str, Any] | None = None,
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        **changes: Any,
    ) -> list[Completion]:
        """Completions of prompts of any lengths, decoded together; each is as it would be alone.

        A prompt is a text, token ids, or messages. `options` may be one for all or one for each.
        The other arguments are those of `generate`, for all prompts that are messages.
        """
        prompts = prompt_list(prompts)
        chat, plain = Chat(tools, continue_final_message, template_arguments), Chat()
        if isinstance(options, Sequence):
            if len(options) != len(prompts):
                raise OptionError(f"options: expected {len(prompts)}, got {len(options)}")
            chosen = [_options(o, changes) for o in options]
        else:
            chosen = [_options(options, changes)] * len(prompts)
        groups, count = [], 0
        for prompt, own in zip(prompts, chosen, strict=True):
            if is_messages(prompt):
                groups.append(self._start(count, None, prompt, chat, own))  # type: ignore
            else:
                groups.append(self._start(count, prompt, None, plain, own))  # type: ignore
            count += own.n
        pieces = self.engine.pieces([s for group in groups for s in group], whole=True)
        return self._complete(groups, pieces)

    def _start(
        self, first: int, prompt: Prompt | None, messages: Messages | None, chat: Chat,
        options: SamplingOptions,
    ) -> list[Generation]:  # fmt: skip
        """The n continuations of a prompt, numbered from `first` on."""
        ids = self.encode(prompt, messages, chat)
        context = self.config.max_position_embeddings
        if len(ids) >= context:
            raise OptionError(
                f"the prompt has {len(ids)} tokens, and the model's context holds {context} with "
                "the answer; shorten the prompt"
            )
        if options.stop:
            required(self.tokenizer, self.source)
        vocab = self.config.vocab_size
        wrong = next((token for token in options.logit_bias if token >= vocab), None)
        if wrong is not None:
            raise OptionError(f"logit_bias: token {wrong} is not in 0..{vocab - 1}")
        if options.deterministic and not self.backend.repeats_bits:
            raise OptionError(
                f"deterministic: {self.backend.name} does not promise the same bits whatever else "
                "runs; numpy does"
            )
        limit = min(options.max_tokens, context - len(ids))
        return [
            Generation.start(first + i, ids, own, limit, self.eos_ids, self.tokenizer)
            for i, own in enumerate(options.choices())
        ]

    def encode(
        self, prompt: Prompt | None, messages: Messages | None = None, chat: Chat | None = None
    ) -> list[int]:
        """The token ids of a prompt or of a conversation, checked."""
        if (prompt is None) == (messages is None):
            raise OptionError("expected either a prompt or messages")
        if messages is not None:
            tokenizer = required(self.tokenizer, self.source)
            text = (chat or Chat()).render(tokenizer, messages)
            ids = tokenizer.encode(text, add_special_tokens=False)
        elif chat is not None and chat != Chat():
            raise OptionError(
                "tools, continue_final_message and template_arguments need messages, got a prompt"
            )
        elif isinstance(prompt, str):
            ids = required(self.tokenizer, self.source).encode(prompt)
        else:
            ids = id_list(prompt)
        if not ids:
            bos = self.tokenizer.bos_id if self.tokenizer else None
            if bos is None:
                raise OptionError("the prompt is empty: it has no tokens")
            ids = [bos]
        self._check_ids(ids)
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab = self.config.vocab_size
        for outermost in (min(ids), max(ids)):
            if not 0 <= outermost < vocab:
                raise TokenizerError(
                    f"token id {outermost} is not in the model's vocabulary 0..{vocab - 1}"
                )

    def _complete(
        self, groups: list[list[Generation]], pieces: Iterator[Piece]
    ) -> list[Completion]:
        """One completion for each group of continuations."""
        texts: dict[int, str] = defaultdict(str)
        logprobs: dict[int, list[TokenLogprobs]] = defaultdict(list)
        timings = {}
        for piece in pieces:
            texts[piece.index] += piece.text
            if piece.logprobs is not None:
                logprobs[piece.index].append(piece.logprobs)
            if piece.timings is not None:
                timings[piece.index] = piece.timings

        def completion(s: Generation, others: Sequence[Completion] = ()) -> Completion:
            return Completion(
                texts[s.index],
                s.output,
                s.finish_reason or "length",
                Usage(len(s.prompt), len(s.output)),
                timings[s.index],
                logprobs[s.index] if s.options.logprobs is not None else None,
                tuple(others),
            )

        return [completion(first, [*map(completion, rest)]) for first, *rest in groups]

    # -- looking at the model --------------------------------------------------------------------
    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of one sequence, without a cache: what keys and values are kept as
        (`kv_dtype`) leaves no trace in them. No pass of generations starts meanwhile."""
        ids = self._sequence(token_ids, "logits")
        return self.engine.between_rounds(lambda: self.runner.logits(ids).numpy())

    def hidden_states(self, token_ids: Sequence[int]) -> list[np.ndarray]:
        """Hidden states float32 [T, E] of one sequence: after the embedding, after each layer, the
        last after the final norm (transformers' `output_hidden_states`). As `logits`."""
        ids = self._sequence(token_ids, "hidden_states")
        return self.engine.between_rounds(
            lambda: [h.to("float32").numpy() for h in self.runner.hidden_states(ids)]
        )

    def _sequence(self, token_ids: Sequence[int], what: str) -> list[int]:
        ids = id_list(token_ids, what)
        if not ids:
            raise OptionError(f"{what}: expected at least one token")
        self.runner.check_length(len(ids), what)
        self._check_ids(ids)
        return ids

    def score(self, text: Prompt) -> Score:
        """Negative log-likelihood of a text (or token ids) of two tokens or more.

        It is a prompt among those of generations, and texts of several threads share passes.
        """
        ids = self.encode(text)
        context = self.config.max_position_embeddings
        if not 2 <= len(ids) <= context:
            raise OptionError(f"score: expected 2 to {context} tokens, got {len(ids)}")
        losses = self.engine.losses([ids])[0]
        return Score(float(losses.sum(dtype=np.float64)), len(ids) - 1)

    def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        template: str | None = None,
        instruction: str | None = None,
        top_k: int | None = None,
    ) -> list[Ranked]:
        """The texts in the order in which they answer the query, as the model judges them.

        Args:
            template: how it is asked: "qwen3" (Qwen3-Reranker) or "bge" (bge-reranker-v2-gemma),
                for folders that do not say it; `boostr.load` makes rerankers of those that do.
            instruction: what is asked for, in place of the template's own words.
            top_k: so many of them; default all.
        """
        from boostr.engine.answers import QuestionReranker
        from boostr.engine.text_model import Parts

        ranker = self._rankers.get(template)
        if ranker is None:
            parts = Parts(self.module, self.tokenizer, self.backend, self.source)
            ranker = self._rankers[template] = QuestionReranker.by_name(parts, template)
        return ranker.rerank(query, texts, top_k=top_k, prompt=instruction)


def _finite(pieces: Generator[Piece]) -> Generator[Piece]:
    """The same pieces; NumericsError in place of one that ends with an error."""
    counts = Counter[int]()
    with closing(pieces):  # Python 3.12.3 closes a generator without what its frame refers to
        for piece in pieces:
            count = counts[piece.index]
            if piece.finish_reason == "error":
                raise NumericsError(
                    f"the logits after {count} generated tokens are nan or infinite: the weights "
                    "are damaged, or their values are too large for the dtype (try "
                    "dtype='float32'), or a penalty makes them so"
                )
            counts[piece.index] += 1
            yield piece


def _options(options: SamplingOptions | None, changes: Mapping[str, Any]) -> SamplingOptions:
    if options is not None and not isinstance(options, SamplingOptions):
        raise OptionError(f"options must be SamplingOptions, got {type(options).__name__}")
    known = SamplingOptions.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; known: {', '.join(known)}")
    return replace(options or SamplingOptions(), **changes)
