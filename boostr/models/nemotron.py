"""Nemotron, Minitron: layer norms stored minus 1, half of each head rotated, squared positive
parts in an MLP without a gate."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import LayerNorms, LayerSpec, MLPSpec, NormSpec

DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576,
    "num_hidden_layers": 32, "num_attention_heads": 48, "max_position_embeddings": 4096,
    "hidden_act": "relu2", "partial_rotary_factor": 0.5, "norm_offset": 1.0,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "nemotron",
            "NemotronForCausalLM",
            untied=True,
            keys={"attention.layer_norm_epsilon": "norm_eps"},
            says=lambda config: {"norm_offset": 0.0},  # the converter adds the 1
            spelled={"partial_rotary_factor": "partial_rotary_factor"},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias, offset = config.get("attention_bias", bool, False), config.get("norm_offset", float)
        eps = config.get("norm_eps", float, 1e-5)
        norm = NormSpec(eps, "layer", bias=True, offset=offset)
        mixer = read.attention(config, bias=bias, output_bias=bias)
        mlp = MLPSpec(
            config.size("intermediate_size"),
            config.get("hidden_act", str),
            gated=False,
            bias=config.get("mlp_bias", bool, False),
        )
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"), norm=norm)
