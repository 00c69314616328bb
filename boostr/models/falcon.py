"""Falcon 7B, 40B, 11B and RW: halves of a layer that read the same input or not, few heads of keys,
rope or ALiBi."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.errors import ModelFileError
from boostr.models import bloom, decoder, plan
from boostr.models import config as read
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import AttentionSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec

DEFAULTS = {
    "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "activation": "gelu",
    "ffn_hidden_size": None, "num_kv_heads": None, "num_ln_in_parallel_attn": None,
    "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "alibi": False,
    "bias": False, "tie_word_embeddings": True,
}  # fmt: skip
# what others call it -> its name
SPELLED = {
    "num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size",
    "hidden_act": "activation",
}  # fmt: skip
_NORMS = {"attn_norm_2": "input_layernorm", "attn_norm": "post_attention_layernorm"}


def _names(config: ModelConfig) -> dict[str, str]:
    """The second norm of a file is the one before attention."""
    two = config.layers[0].norms.before_mlp is not None
    return {f"blk.{{i}}.{n}": f"{decoder.LAYER}{own}" for n, own in _NORMS.items() if two}


def _said(config: Config) -> Config:
    """All are read as the newer kind, whose q, k and v lie as those of the older ones."""
    two = config["num_ln_in_parallel_attn"]
    return {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2 if two else 1}


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "falcon",
            "FalconForCausalLM",
            names=_names,
            packed=("attn_qkv",),
            flags={"num_ln_in_parallel_attn": ("attn_norm_2.weight", True)},
            keys={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
            says=_said,
            spelled=SPELLED,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        config = config.filled(**{name: config.raw[own] for name, own in SPELLED.items()})
        new = config.get("new_decoder_architecture", bool)
        parallel, bias = new or config.get("parallel_attn", bool), config.get("bias", bool)
        norm = NormSpec(config.get("layer_norm_epsilon", float), "layer", bias=True)
        count = config.size("num_ln_in_parallel_attn", 2 if new else 1)
        if count > 1 + new:
            raise ModelFileError(
                f"{config.source}: num_ln_in_parallel_attn must be 1, or 2 with "
                f"new_decoder_architecture, got {count}"
            )
        own = norm if count == 2 or not parallel else None
        hidden = config.size("intermediate_size", None) or 4 * config.size("hidden_size")
        layer = LayerSpec(
            _mixer(config, new, bias),
            MLPSpec(hidden, config.get("hidden_act", str), gated=False, bias=bias),
            LayerNorms(before_mixer=norm, before_mlp=own),
            "parallel" if parallel else "serial",
        )
        ropes: dict[str, Any] = {"ropes": {}} if layer.mixer.rope is None else {}
        layers = (layer,) * config.size("num_hidden_layers")
        return read.decoder_config(config, layers, norm=norm, **ropes)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """BLOOM's names, and its own of the two norms of a parallel layer."""
        names = {"ln_attn": "input_layernorm", "ln_mlp": "post_attention_layernorm"}
        layer, spec = decoder.LAYER, config.layers[0]
        two = spec.form == "parallel" and spec.norms.before_mlp is not None
        own = [plan.rename(layer + old, layer + new) for old, new in names.items() if two]
        return bloom.plan_of(config) + LoadPlan(tuple(own)) + decoder.CausalLM.load_plan(config)


def _mixer(config: RawConfig, new: bool, bias: bool) -> AttentionSpec:
    heads = config.size("num_attention_heads")
    if new:
        kv_heads = config.size("num_key_value_heads", heads)
    else:
        kv_heads = 1 if config.get("multi_query", bool) else heads
    mixer = read.attention(config, kv_heads=kv_heads, bias=bias, output_bias=bias)
    if not config.get("alibi", bool):
        return mixer
    # they are added before the scores are scaled, and were bfloat16 when the model was trained
    slopes = np.asarray(read.alibi_slopes(heads)).astype(dtypes.bfloat16).astype(np.float64)
    return replace(mixer, rope=None, alibi=tuple((slopes * mixer.head_dim**-0.5).tolist()))
