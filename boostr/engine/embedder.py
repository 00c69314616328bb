"""EmbeddingModel: an encoder with what its sentence-transformers folder does behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from boostr import autograd
from boostr.backends.base import Backend
from boostr.engine.inputs import text_list
from boostr.engine.options import number
from boostr.engine.runner import Runner
from boostr.engine.sentence import Sentence
from boostr.errors import ModelFileError, OptionError, TokenizerError
from boostr.io.tokenizer import Tokenizer, required
from boostr.models.base import Model

_BATCH_TOKENS = 4096  # packed tokens of one forward pass


class EmbeddingModel:
    """An encoder, or a decoder that was made into one, that is ready to use. Made by `boostr.load`.

    Attributes:
        tokenizer, config, backend, module: what it is made of.   source: where it came from.
            Without tokenizer files `tokenizer` is None: `hidden` works, texts are refused.
        sentence: pooling, prompts and the rest of its sentence-transformers folder.
    """

    def __init__(
        self,
        module: Model,
        tokenizer: Tokenizer | None,
        backend: Backend,
        source: str,
        sentence: Sentence,
    ) -> None:
        self.module, self.tokenizer, self.backend, self.source = module, tokenizer, backend, source
        self.config, self.sentence = module.config, sentence
        self.runner = Runner(module, backend)
        pooled = module.config.hidden_size * len(sentence.poolings)
        self.dimension: int = pooled if sentence.outputs is None else sentence.outputs
        """E of the vectors before they are truncated."""
        if sentence.inputs not in (None, pooled):
            raise ModelFileError(
                f"{source}: the module behind the pooling takes {sentence.inputs} features, but "
                f"the pooling gives {pooled}"
            )

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
        before = self._prompt(prompt_name, prompt)
        width = self._width(truncate_dim)
        first = 0 if self.sentence.include_prompt else self._prompt_tokens(before)
        tokens = [self._encode(before + text) for text in chosen]
        empty = next((i for i, ids in enumerate(tokens) if len(ids) <= first), None)
        if empty is not None:
            why = f"; the prompt before it has {first}, which leaves no room" if first else ""
            raise OptionError(f"embed: texts[{empty}] has no tokens to pool{why}")
        vectors = np.zeros((len(tokens), self.dimension), np.float32)
        for group in _groups([len(ids) for ids in tokens]):
            states = self.hidden([tokens[i] for i in group])
            pooled = np.stack([self.sentence.pool(s, first) for s in states])
            for step in self.sentence.steps:
                pooled = step(pooled)
            vectors[group] = pooled
        return vectors[:, :width]

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if name is not None and prompt is not None:
            raise OptionError("embed: expected a prompt or a prompt_name, got both")
        if prompt is not None:
            return text_list([prompt], "embed: prompt")[0]
        if name is None:
            return self.sentence.default_prompt
        if not isinstance(name, str) or name not in self.sentence.prompts:
            known = ", ".join(self.sentence.prompts) or "none"
            raise OptionError(f"embed: no prompt {name!r:.80}; {self.source} has {known}")
        return self.sentence.prompts[name]

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

    def _encode(self, text: str) -> list[int]:
        context, tokenizer = (
            self.config.max_position_embeddings,
            required(self.tokenizer, self.source),
        )
        limit = min(context, self.sentence.max_length or tokenizer.max_length or context)
        ids = tokenizer.encode(text)
        if max(ids, default=0) >= self.config.vocab_size:
            raise TokenizerError(
                f"token id {max(ids)} is not in the model's vocabulary "
                f"0..{self.config.vocab_size - 1}"
            )
        if len(ids) <= limit:
            return ids
        bare = tokenizer.encode(text, add_special_tokens=False)
        extra = len(ids) - len(bare)  # [CLS] and [SEP] stay around what is cut
        return [*ids[: limit - extra + 1], *ids[len(ids) - extra + 1 :]] if extra else ids[:limit]

    def hidden(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Last hidden states float32 [T, E] of each of several token sequences, computed packed."""
        with autograd.no_grad():
            states = self.module.hidden(self.runner.packed(sequences)).to("float32").numpy()
        return np.split(states, np.cumsum([len(s) for s in sequences])[:-1])

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(w.nbytes for w in self.module.weights().values())


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of texts that are computed together, alike in length."""
    groups: list[list[int]] = []
    tokens = 0
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or tokens + lengths[at] > _BATCH_TOKENS:
            groups.append([])
            tokens = 0
        groups[-1].append(at)
        tokens += lengths[at]
    return groups
