"""Llama 2 and 3, SmolLM2, TinyLlama, Yi: the plain decoder that its descendants vary."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("llama", "LlamaForCausalLM", "interleaved"),)  # q and k are permuted

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        bias = config.get("attention_bias", bool, False)
        layer = read.pre_norm_layer(config, read.attention(config, bias=bias, output_bias=bias))
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
