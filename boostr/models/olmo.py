"""OLMo: Llama under layer norms without weights; q, k and v may be clamped."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import LayerNorms, LayerSpec, NormSpec

DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "olmo",
            "OlmoForCausalLM",
            "interleaved",  # q and k are permuted
            keys={"attention.clamp_kqv": "clip_qkv"},
            writes=lambda config: {"attention.clamp_kqv": config.layers[0].mixer.clip or 0.0},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias = config.get("attention_bias", bool, False)
        norm = NormSpec(1e-5, "layer", weight=False)
        clip = config.get("clip_qkv", float, None) or None  # 0 is none, as in GGUF
        mixer = read.attention(config, bias=bias, output_bias=bias, clip=clip)
        layer = LayerSpec(mixer, read.mlp(config), LayerNorms(before_mixer=norm, before_mlp=norm))
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"), norm=norm)
