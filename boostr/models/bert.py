"""BERT encoders (MiniLM, BGE, E5): hidden states of packed texts, for embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boostr import nn, ops
from boostr.errors import ModelFileError, OptionError
from boostr.models import base, plan
from boostr.models.config import RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn import fusion
from boostr.nn.specs import NormSpec
from boostr.nn.states import State
from boostr.tensor import Tensor


@dataclass(frozen=True)
class BertConfig:
    """Hugging Face's names; `extra` is the config.json, as it was read."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    norm: NormSpec
    hidden_act: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Embeddings(nn.Module):
    """Word, position and token-type tables, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        E = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, E)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, E)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, E)
        self.LayerNorm = nn.Norm(E, config.norm)

    def __call__(self, batch: nn.Batch) -> Tensor:
        words, places = self.word_embeddings(batch.ids), self.position_embeddings(batch.positions)
        first_type = self.token_type_embeddings(batch.ids * 0)
        return self.LayerNorm(words + places + first_type)


class SelfAttention(nn.Module):
    """q, k, v with biases; every token sees every token of its text."""

    def __init__(self, config: BertConfig) -> None:
        E = config.hidden_size
        self.query = nn.Linear(E, E, bias=True)
        self.key = nn.Linear(E, E, bias=True)
        self.value = nn.Linear(E, E, bias=True)
        self._head_dim = E // config.num_attention_heads

    def __call__(self, x: Tensor, batch: nn.Batch) -> Tensor:
        T, E = x.shape
        q, k, v = (
            projection(x).reshape(T, -1, self._head_dim)
            for projection in (self.query, self.key, self.value)
        )
        out, _ = ops.varlen_attention(q, k, v, batch.cu_seqlens, batch.cu_seqlens)
        return out.reshape(T, E)


class Output(nn.Module):
    """LayerNorm(dense(x) + residual)."""

    def __init__(self, features: int, config: BertConfig) -> None:
        self.dense = nn.Linear(features, config.hidden_size, bias=True)
        self.LayerNorm = nn.Norm(config.hidden_size, config.norm)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x, residual))


class AttentionBlock(nn.Module):
    """Attention and its output, under BERT's names."""

    def __init__(self, config: BertConfig) -> None:
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)


class Intermediate(nn.Module):
    """act(dense(x))."""

    def __init__(self, config: BertConfig) -> None:
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size, bias=True)
        self._activation = nn.activation(config.hidden_act)

    def __call__(self, x: Tensor) -> Tensor:
        weights, biases = [self.dense.weight], [self.dense.bias]
        return fusion.products(x, None, weights, biases, self._activation)  # type: ignore


class Layer(nn.Module):
    """Attention and feed-forward, each followed by its norm."""

    def __init__(self, config: BertConfig) -> None:
        self.attention = AttentionBlock(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def __call__(self, x: Tensor, batch: nn.Batch) -> Tensor:
        h = self.attention.output(self.attention.self(x, batch), residual=x)
        return self.output(self.intermediate(h), residual=h)


class Encoder(nn.Module):
    """The stack of layers, under BERT's name."""

    def __init__(self, config: BertConfig) -> None:
        self.layer = [Layer(config) for _ in range(config.num_hidden_layers)]


class Model(base.Model):
    """Hidden states; the pooler and pre-training heads of a checkpoint are not part of it."""

    capabilities = frozenset({"embed"})

    def __init__(self, config: BertConfig) -> None:
        self.config = config
        self.ropes = {}
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    @staticmethod
    def read_config(config: RawConfig) -> BertConfig:
        for name, only in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            value = config.get(name, type(only), only)
            if value != only:
                raise ModelFileError(f"{config.source}: {name} must be {only!r}, got {value!r}")
        return BertConfig(
            config.get("model_type", str),
            config.size("vocab_size"),
            config.size("hidden_size"),
            config.size("intermediate_size"),
            config.size("num_hidden_layers"),
            config.size("num_attention_heads"),
            config.size("max_position_embeddings", 512),
            config.size("type_vocab_size", 2),
            NormSpec(config.get("layer_norm_eps", float, 1e-12), "layer", bias=True),
            config.get("hidden_act", str, "gelu"),
            config.raw,
        )

    @staticmethod
    def load_plan(config: BertConfig) -> LoadPlan:
        """Checkpoints with a head put `bert.` before every name; old ones have gamma and beta."""
        return LoadPlan((
            plan.prefixes("", ("bert.", "")),
            plan.alias("{path}.LayerNorm.gamma", "{path}.LayerNorm.weight"),
            plan.alias("{path}.LayerNorm.beta", "{path}.LayerNorm.bias"),
            plan.leftover(("pooler.", "cls."), ("embeddings.position_ids",)),  # heads; a buffer
        ))  # fmt: skip

    @property
    def activation_dtype(self) -> np.dtype:
        """Of hidden states."""
        return self.embeddings.word_embeddings.dtype

    def states(self) -> list[list[State]]:
        """Nothing: every forward pass is over whole texts."""
        return [[] for _ in self.encoder.layer]

    def hidden(self, batch: nn.Batch) -> Tensor:
        """Last hidden states [T, E] of packed texts."""
        return base.last_of(self._states(batch))

    def hidden_states(self, batch: nn.Batch) -> list[Tensor]:
        """Hidden states [T, E] after the embeddings and after each layer."""
        return list(self._states(batch))

    def _states(self, batch: nn.Batch) -> Iterator[Tensor]:
        x = self.embeddings(batch)
        yield x
        for layer in self.encoder.layer:
            x = layer(x, batch)
            yield x

    def head(self, hidden: Tensor) -> Tensor:
        """Refused: what `capabilities` does not name."""
        raise OptionError(f"{self.config.model_type!r} is an encoder: it gives no logits")

    def __call__(self, batch: nn.Batch) -> Tensor:
        return self.hidden(batch)
