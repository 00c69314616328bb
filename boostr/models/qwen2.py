"""Qwen2 and Qwen2.5: Llama with biases on q, k, v, and a sliding window in some layers."""

from __future__ import annotations

from boostr.models import llama
from boostr.models.config import DecoderConfig, RawConfig, layer_windows


class CausalLM(llama.CausalLM):
    """See `llama.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        return DecoderConfig.from_hf(config, qkv_bias=True, sliding_window=layer_windows(config))
