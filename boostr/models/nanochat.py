"""nanochat: norms without weights, on the embedding too; q and k are normalised after they are
rotated, the other way round."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import EmbeddingSpec, HeadSpec, LayerNorms, LayerSpec, MLPSpec
from boostr.ops.rope_tables import RopeConfig

DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 768, "intermediate_size": 8192, "num_hidden_layers": 12,
    "num_attention_heads": 6, "max_position_embeddings": 2048, "num_key_value_heads": 6,
    "hidden_act": "relu2", "final_logit_softcapping": 15.0,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm, bias = read.rms_norm(config, weight=False), config.get("attention_bias", bool, False)
        mixer = read.attention(
            config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm, norm_after_rope=True
        )
        mlp = MLPSpec(config.size("intermediate_size"), config.get("hidden_act", str), gated=False)
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            norm=norm,
            embedding=EmbeddingSpec(norm=norm),
            ropes={"full": _backwards(config, mixer.head_dim)},
            head=HeadSpec(
                config.get("tie_word_embeddings", bool, False),
                softcap=config.get("final_logit_softcapping", float) or None,
            ),
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names of the MLP."""
        layer = "model.layers.{i}.mlp."
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(layer + "fc1", layer + "up_proj"),
            plan.rename(layer + "fc2", layer + "down_proj"),
        ))  # fmt: skip


def _backwards(config: RawConfig, head_dim: int) -> RopeConfig:
    """Frequencies divided by -1."""
    rope = read.rope_config(config, head_dim, config.size("max_position_embeddings"))
    factors = [-1.0] * (rope.rotary_dim // 2)
    return replace(rope, parameters={**rope.parameters, "frequency_factors": factors})
