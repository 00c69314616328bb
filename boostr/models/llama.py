"""Llama 2 and 3, SmolLM2, TinyLlama, Yi: the plain decoder that its descendants vary."""

from __future__ import annotations

from typing import Any

import numpy as np

from boostr import nn, ops
from boostr.models import plan
from boostr.models.config import DecoderConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.tensor import Tensor


class Layer(nn.Module):
    """h = x + attention(norm(x)); h + mlp(norm(h))."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        E, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(E, eps)
        self.self_attn = nn.Attention(
            index,
            E,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.qkv_bias,
            output_bias=config.output_bias,
            window=config.sliding_window[index],
            qk_norm=config.qk_norm,
            eps=eps,
            rope_layout=config.rope_layout,
        )
        self.post_attention_layernorm = nn.RMSNorm(E, eps)
        self.mlp = nn.GatedMLP(E, config.intermediate_size, config.hidden_act, config.mlp_bias)

    def __call__(self, x: Tensor, batch: nn.Batch) -> Tensor:
        h = self.self_attn(x, self.input_layernorm, batch)
        return self.mlp(h, self.post_attention_layernorm)


class Decoder(nn.Module):
    """Embedding, layers, and the final norm, which the head applies."""

    def __init__(self, config: DecoderConfig) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, i) for i in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, batch: nn.Batch) -> Tensor:
        x = self.embed_tokens(batch.ids)
        for layer in self.layers:
            x = layer(x, batch)
        return x


class CausalLM(nn.Module):
    """A decoder and the head that turns its hidden states into logits."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.model = Decoder(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size)

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        attention_bias = config.get("attention_bias", bool, False)
        return DecoderConfig.from_hf(
            config,
            qkv_bias=attention_bias,
            output_bias=attention_bias,
            mlp_bias=config.get("mlp_bias", bool, False),
            rope_layout=config.get("rope_layout", str, "split-half"),
        )

    @staticmethod
    def load_plan(config: DecoderConfig) -> LoadPlan:
        """From the names of checkpoints; base models lack `model.`."""
        rules = [
            plan.prefixes("model.", ("model.", ""), outside=("lm_head.",)),
            plan.leftover(suffixes=("rotary_emb.inv_freq",)),  # buffers of old checkpoints
        ]
        if config.tie_word_embeddings:
            rules.append(plan.tied("lm_head.weight", "model.embed_tokens.weight"))
        return LoadPlan(tuple(rules))

    @property
    def activation_dtype(self) -> np.dtype:
        """Of hidden states, keys and values."""
        return self.model.embed_tokens.dtype

    def hidden(self, batch: nn.Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens before the final norm."""
        return self.model(batch)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits float32 [N, V] of hidden states [N, E]."""
        norm, owner = self.model.norm, self.lm_head or self.model.embed_tokens
        return ops.norm_linear(hidden, norm.weight, owner.weight, eps=norm.eps, dtype="float32")

    def __call__(self, batch: nn.Batch) -> Any:
        return self.head(self.hidden(batch))
