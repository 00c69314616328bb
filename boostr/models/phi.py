"""Phi 1 and 2: one layer norm for both halves of a layer, half of each head rotated, biases."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import HeadSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec

DEFAULTS = {
    "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5,
    "hidden_act": "gelu_new",
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "phi2",
            "PhiForCausalLM",
            untied=True,
            keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
            spelled={"partial_rotary_factor": "partial_rotary_factor"},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm = NormSpec(config.get("layer_norm_eps", float, 1e-5), "layer", bias=True)
        of_heads = norm if config.get("qk_layernorm", bool, False) else None
        mixer = read.attention(
            config, bias=True, output_bias=True, q_norm=of_heads, k_norm=of_heads
        )
        mlp = MLPSpec(config.size("intermediate_size"), config.get("hidden_act", str), False, True)
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm), "parallel")
        tied = config.get("tie_word_embeddings", bool, False)
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            norm=norm,
            head=HeadSpec(tied, bias=True),
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names."""
        layer = "model.layers.{i}."
        names = {
            "self_attn.dense": "self_attn.o_proj", "self_attn.q_layernorm": "self_attn.q_norm",
            "self_attn.k_layernorm": "self_attn.k_norm", "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
        }  # fmt: skip
        rules = [plan.rename(layer + old, layer + new) for old, new in names.items()]
        rules.append(plan.rename("model.final_layernorm", "model.norm"))
        return decoder.CausalLM.load_plan(config) + LoadPlan(tuple(rules))
