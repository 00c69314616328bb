"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from boostr.models import llama
from boostr.models.config import DecoderConfig, RawConfig


class CausalLM(llama.CausalLM):
    """See `llama.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        window = config.size("sliding_window", None)
        layers = config.size("num_hidden_layers")
        return DecoderConfig.from_hf(config, sliding_window=(window,) * layers)
