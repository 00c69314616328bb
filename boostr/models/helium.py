"""Helium: Llama with pairs side by side."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 48000, "hidden_size": 2560, "intermediate_size": 7040, "num_hidden_layers": 24,
    "num_attention_heads": 20, "max_position_embeddings": 4096, "rms_norm_eps": 1e-8,
    "num_key_value_heads": 20, "head_dim": 128, "rope_theta": 1e5,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        mixer = read.attention(
            config, bias=config.get("attention_bias", bool, False), layout="interleaved"
        )
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
