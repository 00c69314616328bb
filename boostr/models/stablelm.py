"""StableLM: layer norms, a quarter of each head rotated, halves of a layer that may share one."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import LayerNorms, LayerSpec, NormSpec

DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25,
    "num_key_value_heads": 32,
}  # fmt: skip


SPELLED = {"attention_bias": "use_qkv_bias", "partial_rotary_factor": "partial_rotary_factor"}


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "stablelm",
            "StableLmForCausalLM",
            untied=True,
            flags={
                "use_parallel_residual": ("ffn_norm.weight", False),
                "qk_layernorm": ("attn_q_norm.weight", True),
            },
            keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
            says=lambda config: {"use_qkv_bias": config["attention_bias"]},
            writes=lambda config: {
                "use_parallel_residual": config.layers[0].form == "parallel",
            },
            spelled=SPELLED,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        eps = config.get("layer_norm_eps", float, 1e-5)
        norm, parallel = NormSpec(eps, "layer", bias=True), "use_parallel_residual"
        of_heads = NormSpec(eps, "layer") if config.get("qk_layernorm", bool, False) else None
        mixer = read.attention(
            config,
            bias=config.get("use_qkv_bias", bool, False),
            q_norm=of_heads,
            k_norm=of_heads,
            norm_over="heads",
        )
        shared = config.get(parallel, bool, False)
        norms = LayerNorms(before_mixer=norm, before_mlp=None if shared else norm)
        layer = LayerSpec(mixer, read.mlp(config), norms, "parallel" if shared else "serial")
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"), norm=norm)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Each head has a norm of its own."""
        layer = "model.layers.{i}.self_attn."
        own = LoadPlan(tuple(
            plan.stack(layer + f"{n}_layernorm.norms.{{e}}", layer + f"{n}_norm") for n in "qk"
        ))  # fmt: skip
        return decoder.CausalLM.load_plan(config) + own
