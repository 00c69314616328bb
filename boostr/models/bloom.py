"""BLOOM: ALiBi in place of positions, a norm behind the embedding, q, k and v packed by head."""

from __future__ import annotations

from typing import ClassVar

from boostr.io.settings import INERT, Table, unless
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan, Rule
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec

# what others call it -> its names, of which the older ones come last
SPELLED = {
    "hidden_size": ("hidden_size", "n_embed"),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head", "num_attention_heads"),
    "max_position_embeddings": ("seq_length",),
}
DEFAULTS = {
    "vocab_size": 250880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {
        "apply_residual_connection_post_layernorm": unless(False),  # of no checkpoint
        "slow_but_exact": INERT,
    }
    gguf = (
        Architecture(
            "bloom",
            "BloomForCausalLM",
            packed=("attn_qkv",),
            keys={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
            spelled={name: own[0] for name, own in SPELLED.items()},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        said = {
            name: config.raw[own]
            for name, names in SPELLED.items()
            for own in names
            if config.raw.get(own) is not None
        }
        config = RawConfig({**DEFAULTS, **config.raw, **said}, config.source)
        norm = NormSpec(config.get("layer_norm_epsilon", float), "layer", bias=True)
        slopes = read.alibi_slopes(config.size("num_attention_heads"))
        mixer = read.attention(config, bias=True, output_bias=True, rope=None, alibi=slopes)
        mlp = MLPSpec(4 * config.size("hidden_size"), "gelu_pytorch_tanh", gated=False, bias=True)
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes={},
            embedding=EmbeddingSpec(norm=norm),
            norm=norm,
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names."""
        embedding = plan.rename("transformer.word_embeddings_layernorm", "model.embed_norm")
        return plan_of(config, embedding) + decoder.CausalLM.load_plan(config)


def plan_of(config: ModelConfig, *own: Rule) -> LoadPlan:
    """BLOOM's names and Falcon's, with or without a prefix, as on the hub."""
    layer = decoder.LAYER
    names = {
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    return LoadPlan((
        plan.prefixes("transformer.", ("transformer.", ""), outside=("lm_head.",)),
        *own,
        plan.rename("transformer.word_embeddings", "model.embed_tokens"),
        plan.rename("transformer.ln_f", "model.norm"),
        plan.rename("transformer.h.{i}", "model.layers.{i}"),
        decoder.qkv_by_head(layer + "self_attention.query_key_value", config.layers[0].mixer),
        *(plan.rename(layer + old, layer + new) for old, new in names.items()),
    ))  # fmt: skip
