"""GLM 4 (0414): GLM with norms after the halves of a layer, too."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import glm, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan


class CausalLM(glm.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("glm4", "Glm4ForCausalLM", packed=("ffn_up",), spelled=glm.SPELLED),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        made = glm.CausalLM.read_config(config)
        layer = made.layers[0]
        norms = replace(layer.norms, after_mixer=made.norm, after_mlp=made.norm)
        return replace(made, layers=(replace(layer, norms=norms),) * len(made.layers))

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Four norms; that before the MLP has Llama's name."""
        layer = "model.layers.{i}."
        return glm.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(layer + "post_self_attn_layernorm", layer + "attention_output_norm"),
            plan.rename(layer + "post_mlp_layernorm", layer + "mlp_output_norm"),
        ))  # fmt: skip
