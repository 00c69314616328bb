"""Granite 3: Llama with a factor on the embedding, the scores, what is added to the residual, and
logits."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import llama
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import EmbeddingSpec, HeadSpec

_ROPE = "position_embedding_type"  # a key of Granite 4, and of our reader of GGUF
DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, _ROPE: "rope",
}  # fmt: skip


def _said(config: Config) -> Config:
    """Rope is in all layers or, where the file says so, in none."""
    return {_ROPE: "rope" if config.get(_ROPE, True) else "nope"}


def _written(config: ModelConfig) -> Config:
    layer, head = config.layers[0], config.head or HeadSpec()
    return {
        "embedding_scale": config.embedding.factor,
        "attention.scale": layer.mixer.scale,
        "residual_scale": layer.residual_factor,
        "logit_scale": 1 / head.factor,
        "rope.scaling.finetuned": layer.mixer.rope is not None,
    }


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "granite",
            "GraniteForCausalLM",
            "interleaved",
            keys={
                "embedding_scale": "embedding_multiplier",
                "attention.scale": "attention_multiplier",
                "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
                "rope.scaling.finetuned": _ROPE,
            },
            says=_said,
            writes=_written,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias = config.get("attention_bias", bool, False)
        mixer = read.attention(
            config, bias=bias, output_bias=bias, scale=config.factor("attention_multiplier")
        )
        ropes = {}
        if config.get(_ROPE, str, None) == "rope":
            positions = config.size("max_position_embeddings", 2048)
            ropes["full"] = read.rope_config(config, mixer.head_dim, positions)
        else:
            mixer = replace(mixer, rope=None)
        factor = config.factor("residual_multiplier")
        layer = replace(read.pre_norm_layer(config, mixer), residual_factor=factor)
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes=ropes,
            embedding=EmbeddingSpec(config.factor("embedding_multiplier")),
            head=HeadSpec(
                config.get("tie_word_embeddings", bool, False),
                factor=1 / config.factor("logits_scaling"),
            ),
        )
