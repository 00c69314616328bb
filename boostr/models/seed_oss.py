"""Seed-OSS: Llama with biases of q, k and v, and of the output apart."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 155136, "hidden_size": 4096, "intermediate_size": 27648,
    "num_hidden_layers": 64, "num_attention_heads": 80, "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-6, "num_key_value_heads": 8, "head_dim": 128, "attention_bias": True,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "seed_oss",
            "SeedOssForCausalLM",
            flags={"attention_out_bias": ("attn_output.bias", True)},
            names=lambda config: {
                "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm"
            },
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        mixer = read.attention(
            config,
            bias=config.get("attention_bias", bool),
            output_bias=config.get("attention_out_bias", bool, False),
        )
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
