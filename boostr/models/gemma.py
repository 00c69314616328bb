"""Gemma: Llama with norm weights stored minus 1, an embedding times √E, and a gated GELU.

What its descendants have of it lies here. `norm_offset` is a key of our reader of GGUF, whose files
have the 1 in the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from boostr.io.settings import Table, unless
from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import AttentionSpec, EmbeddingSpec, HeadSpec, LayerNorms, LayerSpec, NormSpec

SHARED = {
    "head_dim": 256, "tie_word_embeddings": True, "norm_offset": 1.0,
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
DEFAULTS = SHARED | {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip


def norm(config: RawConfig) -> NormSpec:
    """Its norm."""
    return read.rms_norm(config, offset=config.get("norm_offset", float))


def attention(config: RawConfig, **changes: Any) -> AttentionSpec:
    """Attention with biases everywhere or nowhere."""
    bias = config.get("attention_bias", bool, False)
    return read.attention(config, bias=bias, output_bias=bias, **changes)


def sandwich(config: RawConfig, mixer: AttentionSpec) -> LayerSpec:
    """A layer with norms before and after both halves."""
    mlp = read.mlp(config, act=config.get("hidden_activation", str), bias=False)
    return LayerSpec(mixer, mlp, LayerNorms(*[norm(config)] * 4))


def decoder_config(config: RawConfig, layers: Sequence[LayerSpec], **changes: Any) -> ModelConfig:
    """The whole around these layers; a softcap of 0 is none, as in GGUF."""
    return read.decoder_config(
        config,
        layers,
        embedding=EmbeddingSpec(config.size("hidden_size") ** 0.5),
        norm=norm(config),
        head=HeadSpec(
            config.get("tie_word_embeddings", bool),
            softcap=config.get("final_logit_softcapping", float, None) or None,
        ),
        **changes,
    )


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {"use_bidirectional_attention": unless(False)}
    gguf = (Architecture("gemma", "GemmaForCausalLM", says=lambda config: {"norm_offset": 0.0}),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        act = config.get("hidden_act", str)
        mlp = read.mlp(config, act="gelu_pytorch_tanh" if act == "gelu" else act, bias=False)
        norms = LayerNorms(before_mixer=norm(config), before_mlp=norm(config))
        layer = LayerSpec(attention(config), mlp, norms)
        return decoder_config(config, (layer,) * config.size("num_hidden_layers"))
