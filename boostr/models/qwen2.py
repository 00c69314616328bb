"""Qwen2 and Qwen2.5: Llama with biases on q, k, v, and a sliding window in some layers."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import llama
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {"max_position_embeddings": 32768, "sliding_window": 4096}


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("qwen2", "Qwen2ForCausalLM"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        layer = read.pre_norm_layer(config, read.attention(config, bias=True))
        mixers = [replace(layer.mixer, window=w) for w in read.layer_windows(config)]
        return read.decoder_config(config, read.by_layer(layer, mixers))
