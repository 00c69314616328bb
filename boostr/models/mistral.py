"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import llama
from boostr.models.config import ModelConfig, RawConfig


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        mixer = read.attention(config, window=config.size("sliding_window", None))
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
