"""Command R: one layer norm without bias for both halves of a layer, pairs side by side, scaled
logits."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import HeadSpec, LayerNorms, LayerSpec, NormSpec

DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528,
    "num_hidden_layers": 40, "num_attention_heads": 64, "max_position_embeddings": 8192,
    "logit_scale": 0.0625, "rope_theta": 5e5,
    "tie_word_embeddings": True,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "command-r",
            "CohereForCausalLM",
            flags={"use_qk_norm": ("attn_q_norm.weight", True)},
            keys={"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"},
            says=lambda config: {"tie_word_embeddings": True},  # no head is read
            writes=lambda config: {"logit_scale": factor_of(config)},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        layer = parallel_layer(config)
        return whole(config, (layer,) * config.size("num_hidden_layers"))


def parallel_layer(config: RawConfig) -> LayerSpec:
    """The layer of both generations."""
    norm = NormSpec(config.get("layer_norm_eps", float, 1e-5), "layer")
    of_heads = norm if config.get("use_qk_norm", bool, False) else None
    bias = config.get("attention_bias", bool, False)
    mixer = read.attention(
        config, bias=bias, output_bias=bias, q_norm=of_heads, k_norm=of_heads, norm_over="heads",
        layout="interleaved",
    )  # fmt: skip
    return LayerSpec(mixer, read.mlp(config), LayerNorms(before_mixer=norm), "parallel")


def whole(config: RawConfig, layers: tuple[LayerSpec, ...]) -> ModelConfig:
    """The model of these layers."""
    head = HeadSpec(
        config.get("tie_word_embeddings", bool), factor=config.get("logit_scale", float)
    )
    return read.decoder_config(config, layers, norm=layers[0].norms.before_mixer, head=head)


def factor_of(config: ModelConfig) -> float:
    """Of the logits."""
    return 1.0 if config.head is None else config.head.factor
