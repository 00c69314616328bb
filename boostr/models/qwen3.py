"""Qwen3: Llama with RMS norms on the heads of q and k, and a head size of its own."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import llama
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {"max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128}


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("qwen3", "Qwen3ForCausalLM"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias, norm = config.get("attention_bias", bool, False), read.rms_norm(config)
        mixer = read.attention(config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm)
        mixers = [replace(mixer, window=w) for w in read.layer_windows(config)]
        return read.decoder_config(
            config, read.by_layer(read.pre_norm_layer(config, mixer), mixers)
        )
