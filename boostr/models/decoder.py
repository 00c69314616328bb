"""CausalLM: the decoder that a `DecoderConfig` describes. Families read a config into one; those
whose layers are of another form set `block`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from boostr import nn
from boostr.models import plan
from boostr.models.base import GENERATES, Model, last_of
from boostr.models.config import DecoderConfig
from boostr.models.plan import LoadPlan
from boostr.nn import fusion
from boostr.nn.states import State
from boostr.ops import core
from boostr.tensor import Tensor


class Decoder(nn.Module):
    """Embedding, layers, and the final norm, which the head applies."""

    def __init__(self, config: DecoderConfig, block: Callable[..., Any]) -> None:
        E = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, E, config.embedding)
        self.layers = [block(E, i, spec) for i, spec in enumerate(config.layers)]
        self.norm = nn.Norm(E, config.head.norm)

    def __call__(self, batch: nn.Batch) -> Iterator[Tensor]:
        """Hidden states after the embedding and after each layer, none of them kept."""
        x = self.embed_tokens(batch.ids) if batch.embeddings is None else batch.embeddings
        yield x
        for layer in self.layers:
            x = layer(x, batch)
            yield x


class CausalLM(Model):
    """A decoder and the head that turns its hidden states into logits."""

    capabilities = frozenset({GENERATES})
    block: Callable[..., Any] = nn.Block

    def __init__(self, config: DecoderConfig) -> None:
        self.config, self.ropes = config, config.ropes
        self.model = Decoder(config, type(self).block)
        head = config.head
        self.lm_head = None
        if not head.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, head.bias)
            self.lm_head.weight = nn.Parameter((config.vocab_size, config.hidden_size), "head")

    @property
    def activation_dtype(self) -> np.dtype:
        """Of hidden states, keys and values."""
        return self.model.embed_tokens.dtype

    @staticmethod
    def load_plan(config: DecoderConfig) -> LoadPlan:
        """From the names of checkpoints; base models lack `model.`."""
        rules = [
            plan.prefixes("model.", ("model.", ""), outside=("lm_head.",)),
            plan.leftover(suffixes=("rotary_emb.inv_freq",)),  # buffers of old checkpoints
        ]
        if config.head.tied:
            rules.append(plan.tied("lm_head.weight", "model.embed_tokens.weight"))
        return LoadPlan(tuple(rules))

    def states(self) -> list[list[State]]:
        """What each layer keeps of a sequence."""
        return [layer.states() for layer in self.model.layers]

    def hidden(self, batch: nn.Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens before the final norm."""
        return last_of(self.model(batch))

    def hidden_states(self, batch: nn.Batch) -> list[Tensor]:
        """Hidden states [T, E] after the embedding, each layer, and for the last the final norm."""
        *states, end = self.model(batch)
        return [*states, self.model.norm(end)]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits float32 [N, V] of hidden states [N, E]."""
        owner = self.lm_head or self.model.embed_tokens
        bias = None if self.lm_head is None else self.lm_head.bias
        logits = fusion.products(
            hidden, self.model.norm.operand, [owner.weight], [bias], dtype="float32"
        )
        cap = self.config.head.softcap
        return logits if cap is None else core.tanh(logits / cap) * cap  # type: ignore[arg-type]

    def __call__(self, batch: nn.Batch) -> Tensor:
        return self.head(self.hidden(batch))
