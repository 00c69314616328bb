"""ERNIE 4.5: Llama with pairs side by side, and biases everywhere or nowhere."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
    "num_attention_heads": 16, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True, "rope_theta": 5e5,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture("ernie4_5", "Ernie4_5ForCausalLM", spelled={"attention_bias": "use_bias"}),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        bias = config.get("use_bias", bool, config.get("attention_bias", bool, False))
        config = config.filled(**DEFAULTS, mlp_bias=bias)
        mixer = read.attention(config, bias=bias, output_bias=bias, layout="interleaved")
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
