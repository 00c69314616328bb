"""EmbeddingModel: an encoder with what its sentence-transformers folder does behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from boostr import ops
from boostr.engine.inputs import text_list
from boostr.engine.options import number
from boostr.engine.packed import PackedBatch
from boostr.engine.sentence import Sentence, normalize
from boostr.engine.text_model import Parts, TextModel
from boostr.errors import ModelFileError, OptionError
from boostr.io.tokenizer import required
from boostr.models.base import Model
from boostr.models.heads import POOLINGS, unit
from boostr.nn.batch import Batch
from boostr.tensor import Tensor


def _first_states(module: Model, batch: Batch) -> Tensor:
    return ops.core.take(module.last_hidden_state(batch), batch.first_tokens)


def _last_states(module: Model, batch: Batch) -> Tensor:
    return ops.core.take(module.last_hidden_state(batch), batch.last_tokens)


# poolings that are done where the states are, of which the host then reads one a text
_DIFFERENTIABLE = {"cls": "first", "mean": "mean", "lasttoken": "last"}  # of POOLINGS
_TAKEN: dict[tuple[str, ...], Callable[..., Tensor]] = {
    ("cls",): _first_states,
    ("lasttoken",): _last_states,
}


class EmbeddingModel(TextModel):
    """An encoder, or a decoder that was made into one, that is ready to use. Made by `boostr.load`.

    Without tokenizer files `hidden` works, texts are refused. Attributes beside `TextModel`'s:
        sentence: pooling, prompts and the rest of its sentence-transformers folder.
    """

    is_a = "an encoder, which gives vectors"

    def __init__(self, parts: Parts, sentence: Sentence) -> None:
        super().__init__(parts, sentence.max_length, sentence.special_tokens)
        self.sentence = sentence
        taken = _TAKEN.get(sentence.poolings)
        self._taken = taken and partial(taken, self.module)
        pooled = self.config.hidden_size * len(sentence.poolings)
        self.dimension: int = pooled if sentence.outputs is None else sentence.outputs
        """E of the vectors before they are truncated."""
        if sentence.inputs not in (None, pooled):
            raise ModelFileError(
                f"{self.source}: the module behind the pooling takes {sentence.inputs} features, "
                f"but the pooling gives {pooled}"
            )

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Vectors float32 [B, E] of sequences of token ids, on the tape.

        Raises:
            OptionError: a pooling or a step behind it that is computed on the host.
        """
        return self.vectors(self.upload(batch))

    def vectors(self, batch: Batch) -> Tensor:
        """The same of a batch that is on the backend already."""
        sentence = self.sentence
        if not all(name in _DIFFERENTIABLE for name in sentence.poolings):
            raise OptionError(f"{self.source}: no gradient through pooling {sentence.poolings}")
        if any(step is not normalize for step in sentence.steps):
            raise OptionError(f"{self.source}: no gradient through what is behind the pooling")
        states = self.module.last_hidden_state(batch)
        pooled = [POOLINGS[_DIFFERENTIABLE[n]](states, batch) for n in sentence.poolings]
        vectors = pooled[0] if len(pooled) == 1 else ops.core.concat(pooled, 1)
        return unit(vectors) if sentence.steps else vectors.to("float32")

    def embed(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
    ) -> np.ndarray:
        """Vectors float32 [N, E], one a text; longer texts are cut as the checkpoint says.

        Args:
            prompt_name: of the checkpoint's prompts; default: its default prompt, if it has one.
            prompt: a text to put before each, instead; "" for none.
            truncate_dim: keep so many numbers of each vector; default: as the checkpoint says.

        Raises:
            OptionError: no list of texts, a prompt that there is not, or one that leaves no room.
        """
        chosen = text_list(texts, "embed")
        before = self.sentence.prompts.choose("embed", prompt_name, prompt)
        width = self._width(truncate_dim)
        first = 0 if self.sentence.include_prompt else self._prompt_tokens(before)
        found = self.encoded([before + text for text in chosen], "embed", first)
        vectors = self._pooled((encoding.ids for encoding in found), len(chosen), first)
        for step in self.sentence.steps:
            vectors = step(vectors)
        return vectors[:, :width]

    def _pooled(self, tokens: Iterable[Sequence[int]], count: int, first: int) -> np.ndarray:
        """A vector of each text's hidden states from its token `first` on, float32 [N, E]."""
        shape = count, self.config.hidden_size * len(self.sentence.poolings)
        if self._taken is not None and not first:
            return self.rows(tokens, self._taken, shape)
        pooled = np.zeros(shape, np.float32)
        for index, states in self.states(tokens, self.module.last_hidden_state):
            pooled[index] = self.sentence.pool(states, first)
        return pooled

    def _width(self, wanted: int | None) -> int:
        if wanted is None:
            return min(self.dimension, self.sentence.truncate_dim or self.dimension)
        return int(number("embed: truncate_dim", wanted, (1, self.dimension, True, False)))

    def _prompt_tokens(self, prompt: str) -> int:
        """How many tokens a prompt takes at the beginning, a special one before it included."""
        if not prompt:
            return 0
        tokenizer = required(self.tokenizer, self.source)
        ids = tokenizer.encode(prompt)
        return len(ids) - bool(ids and tokenizer.is_special(ids[-1]))

    def hidden(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Last hidden states float32 [T, E] of each of several token sequences, computed packed."""
        found = dict(self.states(sequences, self.module.last_hidden_state))
        return [found[i] for i in range(len(sequences))]
