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
from boostr.ops.rope_tables import RopeConfig

DEFAULTS = gemma.SHARED | {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6,
}  # fmt: skip


def _said(config: Config) -> Config:
    return {**gemma2.said(config, largest=62), "sliding_window_pattern": 6}


def _written(config: ModelConfig) -> Config:
    keys = gemma2.written(config)
    if "local" in config.ropes:
        keys["rope.freq_base_swa"] = float(config.ropes["local"].theta)
    return keys


class CausalLM(gemma2.CausalLM):
    """See `decoder.CausalLM`."""

    # transformers does not use the softcap of attention in this family
    keys: ClassVar[Table] = {"attn_logit_softcapping": INERT}
    gguf = (
        Architecture(
            "gemma3",
            "Gemma3ForCausalLM",
            keys={
                "attention.sliding_window": "sliding_window",
                "rope.freq_base_swa": "rope_local_base_freq",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            says=_said,
            writes=_written,
        ),
    )

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
        return gemma.decoder_config(config, layers, ropes=_ropes(config, full.head_dim))

    @classmethod
    def of(cls, config: RawConfig) -> type[base.Model]:
        """What it is where tokens see those after them."""
        return Encoder if config.get("use_bidirectional_attention", bool, False) else cls


class Encoder(encoder.Model):
    """EmbeddingGemma."""

    keys: ClassVar[Table] = CausalLM.keys

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        return replace(CausalLM.read_config(config), head=None)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        return encoder.llamas_names() + CausalLM.load_plan(config)


def _ropes(config: RawConfig, head_dim: int) -> dict[str, RopeConfig]:
    """Full layers have the config's scaling, local ones none."""
    positions = config.size("max_position_embeddings")
    if "sliding_attention" in config.get("rope_parameters", dict, {}):
        local = read.rope_config(
            config, head_dim, positions, theta=1e4, layer_type="sliding_attention"
        )
        full = read.rope_config(config, head_dim, positions, theta=1e6, layer_type="full_attention")
        return {"full": full, "local": local}
    theta = config.get("rope_local_base_freq", float, 1e4)
    return {
        "full": read.rope_config(config, head_dim, positions, theta=1e6),
        "local": RopeConfig(head_dim, theta, positions),
    }
