"""Gemma 3: norms before and after both halves; local layers have a window and their own rope."""

from __future__ import annotations

from dataclasses import replace

from boostr.errors import ModelFileError
from boostr.models import config as read
from boostr.models import llama
from boostr.models.config import DecoderConfig, RawConfig
from boostr.nn.specs import EmbeddingSpec, HeadSpec, LayerNorms, LayerSpec


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        if config.get("use_bidirectional_attention", bool, False):
            raise ModelFileError(f"{config.source}: use_bidirectional_attention is not supported")
        layers, positions = config.size("num_hidden_layers"), 131072
        positions = config.size("max_position_embeddings", positions)
        norm = read.rms_norm(config, offset=config.get("norm_offset", float, 1.0))
        mixer = read.attention(
            config,
            heads=config.size("num_attention_heads", 8),
            kv_heads=config.size("num_key_value_heads", 4),
            head_dim=config.size("head_dim", 256),
            bias=config.get("attention_bias", bool, False),
            output_bias=config.get("attention_bias", bool, False),
            scale=config.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
            q_norm=norm, k_norm=norm,
        )  # fmt: skip
        act = config.get("hidden_activation", str, "gelu_pytorch_tanh")
        full = LayerSpec(mixer, read.mlp(config, act=act), LayerNorms(norm, norm, norm, norm))
        window = config.size("sliding_window", 4096)
        local = replace(full, mixer=replace(mixer, window=window, rope="local"))
        every = config.size("sliding_window_pattern", 6)
        default = ["sliding_attention" if (i + 1) % every else "full_attention"
                   for i in range(layers)]  # fmt: skip
        kinds = {"full_attention": full, "sliding_attention": local}
        return read.decoder_config(
            config,
            [kinds[kind] for kind in read.layer_types(config, default)],
            max_position_embeddings=positions,
            ropes=_ropes(config, mixer.head_dim, positions),
            embedding=EmbeddingSpec(config.size("hidden_size") ** 0.5),
            head=HeadSpec(
                norm,
                tied=config.get("tie_word_embeddings", bool, True),
                softcap=config.get("final_logit_softcapping", float, None),
            ),
        )


def _ropes(config: RawConfig, head_dim: int, positions: int) -> dict:
    """Full layers with the config's scaling, local ones without any."""
    parameters = config.raw.get("rope_parameters") or {}
    if "sliding_attention" in parameters:
        return {
            name: read.rope_config(config, head_dim, positions, theta=theta, layer_type=kind)
            for name, kind, theta in (
                ("full", "full_attention", 1e6), ("local", "sliding_attention", 1e4)
            )
        }  # fmt: skip
    return {
        "full": read.rope_config(config, head_dim, positions, theta=1e6),
        "local": read.RopeConfig(
            head_dim, config.get("rope_local_base_freq", float, 1e4), positions
        ),
    }
