"""GPT-2: layer norms, learned positions, biases everywhere, weights that lie [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from boostr.io.settings import INERT, Table
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan, Rule
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec

# what others call it -> its name
SPELLED = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}  # fmt: skip
DEFAULTS = {
    "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}  # fmt: skip
MLP = {"mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
PRODUCTS = {"attn.c_proj": "self_attn.o_proj", **MLP}  # q, k and v lie in one more
# buffers of old checkpoints, GPT Neo's among them
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = dict.fromkeys(
        ("reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
         "summary_proj_to_labels", "summary_first_dropout"), INERT,
    )  # fmt: skip

    gguf = (
        Architecture(
            "gpt2",
            "GPT2LMHeadModel",
            packed=("attn_qkv",),
            keys={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
            spelled=SPELLED,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = respelled(config.filled(**DEFAULTS))
        norm = NormSpec(config.get("layer_norm_epsilon", float), "layer", bias=True)
        mixer = read.attention(
            config, bias=True, output_bias=True, rope=None,
            scale=None if config.get("scale_attn_weights", bool) else 1.0,
        )  # fmt: skip
        hidden = config.size("intermediate_size", None) or 4 * config.size("hidden_size")
        mlp = MLPSpec(hidden, config.get("hidden_act", str), gated=False, bias=True)
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        mixers = [mixer] * config.size("num_hidden_layers")
        if config.get("scale_attn_by_inverse_layer_idx", bool):
            scale = mixer.scale or mixer.head_dim**-0.5
            mixers = [replace(mixer, scale=scale / (i + 1)) for i in range(len(mixers))]
        return read.decoder_config(
            config,
            read.by_layer(layer, mixers),
            ropes={},
            embedding=EmbeddingSpec(positions=config.size("max_position_embeddings")),
            norm=norm,
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names, and products that lie [in, out]."""
        products = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        return plan_of(
            PRODUCTS,
            *(plan.transpose(decoder.LAYER + name) for name in products),
            decoder.packed_qkv(decoder.LAYER + "attn.c_attn", config.layers[0].mixer),
        ) + decoder.CausalLM.load_plan(config)


def respelled(config: RawConfig) -> RawConfig:
    """The config with others' names for GPT-2's, all of which it has."""
    return config.filled(**{name: config.raw[own] for name, own in SPELLED.items()})


def plan_of(products: Mapping[str, str], *before: Rule) -> LoadPlan:
    """GPT-2's names, with or without a prefix, as on the hub, those of `products` in a layer, and
    what has to be done to these before."""
    layer = decoder.LAYER
    norms = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
    return LoadPlan((
        plan.prefixes("transformer.", ("transformer.", ""), outside=("lm_head.",)),
        plan.leftover(suffixes=_BUFFERS),
        plan.rename("transformer.wte", "model.embed_tokens"),
        plan.rename("transformer.wpe", "model.embed_positions"),
        plan.rename("transformer.ln_f", "model.norm"),
        plan.rename("transformer.h.{i}", "model.layers.{i}"),
        *before,
        *(plan.rename(layer + old, layer + new) for old, new in {**products, **norms}.items()),
    ))  # fmt: skip
