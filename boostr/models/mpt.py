"""MPT: ALiBi in place of positions, no biases anywhere, q, k and v that may be clamped."""

from __future__ import annotations

import math
from typing import ClassVar

from boostr.io.settings import ANY, INERT, Settings, Table, obeyed, unless
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import AttentionSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec

# what others call it -> its name
SPELLED = {
    "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}  # fmt: skip
DEFAULTS = {
    "vocab_size": 50368, "d_model": 2048, "n_layers": 24, "n_heads": 16, "max_seq_len": 2048,
    "expansion_ratio": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
ATTENTION: Table = {
    **dict.fromkeys(("clip_qkv", "softmax_scale", "alibi_bias_max"), obeyed(int, float)),
    **dict.fromkeys(("qk_ln", "prefix_lm", "attn_uses_sequence_id"), unless(False)),
    "alibi": unless(True),
    "attn_type": unless("multihead_attention"),
    "kv_n_heads": unless(),
    ANY: INERT,
}


def _said(config: Config) -> Config:
    """Its numbers of attention lie in a table of their own."""
    most = config.get("alibi_bias_max") or 0.0
    own = {"clip_qkv": config.get("clip_qkv") or None, "alibi_bias_max": most, "alibi": most > 0}
    ratio = config["intermediate_size"] // config["hidden_size"]
    gone = dict.fromkeys(("clip_qkv", "alibi_bias_max", "intermediate_size"))
    return {"attn_config": own, "expansion_ratio": ratio, **gone}


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {
        "no_bias": unless(True),
        "logit_scale": unless(),
        "norm_type": unless("low_precision_layernorm", "layernorm"),
        # there are none beside ALiBi; of gradients; of first values
        **dict.fromkeys(("learned_pos_emb", "embedding_fraction", "init_device"), INERT),
    }
    gguf = (
        Architecture(
            "mpt",
            "MptForCausalLM",
            packed=("attn_qkv",),
            keys={
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
                "attention.clamp_kqv": "clip_qkv",
                "attention.max_alibi_bias": "alibi_bias_max",
            },
            says=_said,
            writes=lambda config: {
                "attention.clamp_kqv": config.layers[0].mixer.clip or 0.0,
                "attention.max_alibi_bias": _most(config.layers[0].mixer),
            },
            spelled=SPELLED,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        config = config.filled(**{name: config.raw[own] for name, own in SPELLED.items()})
        norm = NormSpec(config.get("layer_norm_epsilon", float), "layer")
        hidden = config.size("expansion_ratio") * config.size("hidden_size")
        layer = LayerSpec(
            _mixer(config),
            MLPSpec(hidden, "gelu", gated=False),
            LayerNorms(before_mixer=norm, before_mlp=norm),
        )
        layers = (layer,) * config.size("num_hidden_layers")
        return read.decoder_config(config, layers, ropes={}, norm=norm)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names."""
        layer = decoder.LAYER
        names = {
            "norm_1": "input_layernorm", "norm_2": "post_attention_layernorm",
            "attn.out_proj": "self_attn.o_proj", "ffn": "mlp",
        }  # fmt: skip
        return LoadPlan((
            plan.prefixes("transformer.", ("transformer.", ""), outside=("lm_head.",)),
            plan.rename("transformer.wte", "model.embed_tokens"),
            plan.rename("transformer.norm_f", "model.norm"),
            plan.rename("transformer.blocks.{i}", "model.layers.{i}"),
            decoder.packed_qkv(layer + "attn.Wqkv", config.layers[0].mixer),
            *(plan.rename(layer + old, layer + new) for old, new in names.items()),
        )) + decoder.CausalLM.load_plan(config)  # fmt: skip


def _mixer(config: RawConfig) -> AttentionSpec:
    source = f"{config.source}: attn_config"
    own = RawConfig(config.get("attn_config", dict, {}), source)
    Settings(own.raw, source, ATTENTION)
    most = own.factor("alibi_bias_max", 8.0)
    return read.attention(
        config,
        rope=None,
        alibi=read.alibi_slopes(config.size("num_attention_heads"), most),
        clip=own.get("clip_qkv", float, None) or None,
        scale=own.get("softmax_scale", float, None),
    )


def _most(mixer: AttentionSpec) -> float:
    """`alibi_bias_max` of its slopes, of which the smallest is 2**-most."""
    return -math.log2(min(mixer.alibi or (1.0,)))
