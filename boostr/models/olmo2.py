"""OLMo 2: norms after the halves of a layer instead of before, and over all heads of q and k."""

from __future__ import annotations

import numpy as np

from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture, Config
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


def _said(config: Config) -> Config:
    """With a window it is an OLMo 3."""
    if not config.get("sliding_window"):
        return {}
    return {"model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"]}


def windows(config: ModelConfig) -> Config:
    """Metadata of windows: their size, and which layers have one."""
    sizes = [layer.mixer.window for layer in config.layers]
    size = next((size for size in sizes if size), None)
    if size is None:
        return {}
    return {
        "attention.sliding_window": size,
        "attention.sliding_window_pattern": np.array([bool(size) for size in sizes]),
    }


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "olmo2",
            "Olmo2ForCausalLM",
            untied=True,
            keys={
                "attention.sliding_window": "sliding_window",
                "rope.freq_base_swa": "rope_theta_swa",
            },
            says=_said,
        ),
    )

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
