"""Ministral 3: Llama with YaRN, and queries that grow with the logarithm of their position."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import llama
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
}  # fmt: skip
ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("mistral3", "Ministral3ForCausalLM", "interleaved"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        if not config.raw.get("rope_parameters") and not config.raw.get("rope_scaling"):
            config = RawConfig({**config.raw, "rope_parameters": ROPE}, config.source)
        mixer = read.attention(config, window=config.size("sliding_window", None))
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
