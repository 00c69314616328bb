"""Gemma 3: Gemma 2 with norms on the heads of q and k, and a rope of their own for local layers.

EmbeddingGemma is one whose tokens see those after them, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from boostr.io.settings import INERT, Table
from boostr.models import base, encoder, gemma, gemma2
from boostr.models import config as read
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = gemma.SHARED | {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6,
}  # fmt: skip


def _said(config: Config) -> Config:
    return {**gemma2.said(config, largest=62), "sliding_window_pattern": 6}


def _written(config: ModelConfig) -> Config:
    keys = gemma2.written(config)
    if not config.layers[0].mixer.causal:
        keys["attention.sliding_window"] *= 2  # of both sides
    if "local" in config.ropes:
        keys["rope.freq_base_swa"] = float(config.ropes["local"].theta)
    return keys


_DECODER = Architecture(
    "gemma3",
    "Gemma3ForCausalLM",
    keys={
        "attention.sliding_window": "sliding_window",
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    says=_said,
    writes=_written,
)
_ENCODER = replace(
    _DECODER,
    name="gemma-embedding",
    hf_class="Gemma3TextModel",
    says=lambda config: {**_said(config), "use_bidirectional_attention": True},
)


class CausalLM(gemma2.CausalLM):
    """See `decoder.CausalLM`."""

    # transformers does not use the softcap of attention in this family
    keys: ClassVar[Table] = {"attn_logit_softcapping": INERT}
    gguf = (_DECODER, _ENCODER)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm, scale = gemma.norm(config), config.factor("query_pre_attn_scalar") ** -0.5
        both = config.get("use_bidirectional_attention", bool, False)
        window = config.size("sliding_window")
        full = gemma.attention(config, q_norm=norm, k_norm=norm, scale=scale, causal=not both)
        local = replace(full, window=window // 2 if both else window, rope="local")
        kinds = {"full_attention": full, "sliding_attention": local}
        pattern = read.every(
            config.size("sliding_window_pattern"), config.size("num_hidden_layers")
        )
        mixers = [kinds[kind] for kind in read.layer_types(config, pattern)]
        layers = read.by_layer(gemma.sandwich(config, full), mixers)
        ropes = read.local_ropes(config, full.head_dim, 1e6, "rope_local_base_freq", 1e4)
        return gemma.decoder_config(config, layers, ropes=ropes)

    @classmethod
    def of(cls, config: RawConfig) -> type[base.Model]:
        """What it is where tokens see those after them."""
        return Encoder if config.get("use_bidirectional_attention", bool, False) else cls


class Encoder(encoder.Model):
    """EmbeddingGemma."""

    keys: ClassVar[Table] = CausalLM.keys
    gguf = (_ENCODER,)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        return replace(CausalLM.read_config(config), head=None)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        return encoder.llamas_names() + CausalLM.load_plan(config)
