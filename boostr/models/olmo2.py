"""OLMo 2: norms after the halves of a layer instead of before, and over all heads of q and k."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import LayerNorms, LayerSpec

DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-5,
}  # fmt: skip


def layer(config: RawConfig) -> LayerSpec:
    """Its layer."""
    bias, norm = config.get("attention_bias", bool, False), read.rms_norm(config)
    mixer = read.attention(
        config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm, norm_over="all"
    )
    return LayerSpec(mixer, read.mlp(config), LayerNorms(after_mixer=norm, after_mlp=norm))


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("olmo2", "Olmo2ForCausalLM"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        return read.decoder_config(config, (layer(config),) * config.size("num_hidden_layers"))

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its norm after attention has the name of Llama's before the MLP."""
        at = "model.layers.{i}."
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(at + "post_attention_layernorm", at + "attention_output_norm"),
            plan.rename(at + "post_feedforward_layernorm", at + "mlp_output_norm"),
        ))  # fmt: skip
