"""Qwen3: Llama with RMS norms on the heads of q and k, and a head size of its own."""

from __future__ import annotations

from boostr.models import llama
from boostr.models.config import DecoderConfig, RawConfig, layer_windows


class CausalLM(llama.CausalLM):
    """See `llama.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        bias = config.get("attention_bias", bool, False)
        return DecoderConfig.from_hf(
            config,
            head_dim=config.size("head_dim", 128),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            sliding_window=layer_windows(config),
        )
