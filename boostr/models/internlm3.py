"""InternLM 3: Llama with biases of q, k and v, and with others."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 128512, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 32768,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("llama", "InternLM3ForCausalLM", "interleaved"),)  # read as Llama

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        qkv, bias = (config.get(name, bool, False) for name in ("qkv_bias", "bias"))
        mixer = read.attention(config, bias=qkv, output_bias=bias)
        layer = replace(read.pre_norm_layer(config, mixer), mlp=read.mlp(config, bias=bias))
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
