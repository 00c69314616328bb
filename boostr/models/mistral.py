"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import llama
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
}  # fmt: skip


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        mixer = read.attention(config, window=config.size("sliding_window", None))
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
