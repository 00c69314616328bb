"""GPT-NeoX, Pythia: layer norms, partial rope, and halves that read the same input."""

from __future__ import annotations

from typing import ClassVar

from boostr.io.settings import INERT, Table
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import LayerNorms, LayerSpec, MLPSpec, NormSpec

DEFAULTS = {
    "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
    "num_attention_heads": 64, "max_position_embeddings": 2048, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000.0,
    "attention_bias": True, "use_parallel_residual": True,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {"is_decoder": INERT}
    gguf = (
        Architecture(
            "gptneox",
            "GPTNeoXForCausalLM",
            untied=True,
            packed=("attn_qkv",),
            keys={
                "attention.layer_norm_epsilon": "layer_norm_eps",
                "use_parallel_residual": "use_parallel_residual",
            },
            writes=lambda config: {
                "use_parallel_residual": config.layers[0].form == "parallel",
            },
            spelled={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm = NormSpec(config.get("layer_norm_eps", float), "layer", bias=True)
        bias = config.get("attention_bias", bool)
        mixer = read.attention(config, bias=bias, output_bias=bias)
        act = config.get("hidden_act", str)
        layer = LayerSpec(
            mixer,
            MLPSpec(config.size("intermediate_size"), act, gated=False, bias=True),
            LayerNorms(before_mixer=norm, before_mlp=norm),
            "parallel" if config.get("use_parallel_residual", bool) else "serial",
        )
        rope = read.rope_config(
            config,
            mixer.head_dim,
            config.size("max_position_embeddings"),
            theta=config.get("rotary_emb_base", float),
            partial=config.get("rotary_pct", float),
        )
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes={"full": rope},
            norm=norm,
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names, and q, k, v of each head end to end."""
        layer = decoder.LAYER
        rules = LoadPlan((
            plan.prefixes("gpt_neox.", ("gpt_neox.", ""), outside=("embed_out.",)),
            plan.leftover(suffixes=("attention.bias", "attention.masked_bias")),  # old buffers
            plan.rename("embed_out", "lm_head"),
            plan.rename("gpt_neox.embed_in", "model.embed_tokens"),
            plan.rename("gpt_neox.final_layer_norm", "model.norm"),
            plan.rename("gpt_neox.layers.{i}", "model.layers.{i}"),
            decoder.qkv_by_head(layer + "attention.query_key_value", config.layers[0].mixer),
            plan.rename(layer + "attention.dense", layer + "self_attn.o_proj"),
            plan.rename(layer + "mlp.dense_h_to_4h", layer + "mlp.up_proj"),
            plan.rename(layer + "mlp.dense_4h_to_h", layer + "mlp.down_proj"),
        ))  # fmt: skip
        return rules + decoder.CausalLM.load_plan(config)
