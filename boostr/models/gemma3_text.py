"""Gemma 3: norms before and after both halves; local layers have a window and their own rope.

Norm weights are stored minus 1. The keys that GGUF's reader adds say what its files do otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from boostr.errors import ModelFileError
from boostr.io.settings import INERT, Table, unless
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import EmbeddingSpec, HeadSpec, LayerNorms, LayerSpec
from boostr.ops.rope_tables import RopeConfig

DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
    "max_position_embeddings": 131072, "query_pre_attn_scalar": 256, "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 6, "norm_offset": 1.0,
}  # fmt: skip


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """The converter adds the 1 to norms; 27B alone scales by the width of its embedding."""
    heads, largest = config["num_attention_heads"], config["num_hidden_layers"] == 62
    width = config["hidden_size"] // heads
    scalar = width if largest else config.get("head_dim", width)
    return {"norm_offset": 0.0, "sliding_window_pattern": 6, "query_pre_attn_scalar": scalar}


def _written(config: ModelConfig) -> dict[str, Any]:
    window = next((x.mixer.window for x in config.layers if x.mixer.window), None)
    keys: dict[str, Any] = {"attention.sliding_window": window or 0}
    if "local" in config.ropes:
        keys["rope.freq_base_swa"] = float(config.ropes["local"].theta)
    if config.head is not None and config.head.softcap:
        keys["final_logit_softcapping"] = config.head.softcap
    return keys


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    # transformers does not use the softcap of attention in this family
    keys: ClassVar[Table] = {
        "attn_logit_softcapping": INERT,
        "use_bidirectional_attention": unless(False),
    }
    gguf = (
        Architecture(
            "gemma3",
            "Gemma3ForCausalLM",
            keys={
                "attention.sliding_window": "sliding_window",
                "rope.freq_base_swa": "rope_local_base_freq",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            says=_said,
            writes=_written,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        norm = read.rms_norm(config, offset=config.get("norm_offset", float))
        bias = config.get("attention_bias", bool, False)
        scalar = config.get("query_pre_attn_scalar", float)
        if not scalar:
            raise ModelFileError(f"{config.source}: query_pre_attn_scalar must be above 0, got 0")
        mixer = read.attention(
            config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm, scale=scalar**-0.5,
        )  # fmt: skip
        mlp = read.mlp(config, act=config.get("hidden_activation", str))
        full = LayerSpec(mixer, mlp, LayerNorms(norm, norm, norm, norm))
        local = replace(
            full, mixer=replace(mixer, window=config.size("sliding_window"), rope="local")
        )
        kinds = {"full_attention": full, "sliding_attention": local}
        softcap = config.get("final_logit_softcapping", float, None) or None  # 0 is off, as in GGUF
        return read.decoder_config(
            config,
            [kinds[kind] for kind in read.layer_types(config, _pattern(config))],
            ropes=_ropes(config, mixer.head_dim),
            embedding=EmbeddingSpec(config.size("hidden_size") ** 0.5),
            norm=norm,
            head=HeadSpec(config.get("tie_word_embeddings", bool), softcap=softcap),
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Gemma's norm after attention has the name of Llama's before the MLP."""
        layer = "model.layers.{i}."
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(layer + "post_attention_layernorm", layer + "attention_output_norm"),
            plan.rename(layer + "pre_feedforward_layernorm", layer + "post_attention_layernorm"),
            plan.rename(layer + "post_feedforward_layernorm", layer + "mlp_output_norm"),
        ))  # fmt: skip


def _pattern(config: RawConfig) -> list[str]:
    """Every sixth layer is a full one."""
    every, layers = config.size("sliding_window_pattern"), config.size("num_hidden_layers")
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]


def _ropes(config: RawConfig, head_dim: int) -> dict[str, RopeConfig]:
    """Full layers have the config's scaling, local ones none."""
    positions = config.size("max_position_embeddings")
    if "sliding_attention" in config.get("rope_parameters", dict, {}):
        local = read.rope_config(
            config, head_dim, positions, theta=1e4, layer_type="sliding_attention"
        )
        full = read.rope_config(config, head_dim, positions, theta=1e6, layer_type="full_attention")
        return {"full": full, "local": local}
    theta = config.get("rope_local_base_freq", float, 1e4)
    return {
        "full": read.rope_config(config, head_dim, positions, theta=1e6),
        "local": RopeConfig(head_dim, theta, positions),
    }
