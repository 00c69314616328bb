"""MiniCPM 1, 2 and 4: Llama with factors on the embedding, the residual's addends, and logits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from boostr.io.settings import INERT, Table, unless
from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import EmbeddingSpec, HeadSpec

DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": 1.0,
}  # fmt: skip


def _said(config: Config) -> Config:
    """Files say what comes of the numbers of a config.json, and older ones nothing: they are of
    checkpoints with 12, 1.4 and 256."""
    depth, logits = config.get("scale_depth"), config.get("dim_model_base")
    return {
        "scale_emb": config.get("scale_emb", 12.0),
        "scale_depth": _six(depth * math.sqrt(config["num_hidden_layers"])) if depth else 1.4,
        "dim_model_base": _six(config["hidden_size"] / logits) if logits else 256.0,
    }


def _six(number: float) -> float:
    """To six digits, which is what float32 keeps."""
    return float(f"{number:.6g}")


def _written(config: ModelConfig) -> Config:
    return {
        "embedding_scale": config.embedding.factor,
        "residual_scale": config.layers[0].residual_factor,
        "logit_scale": 1 / (config.head or HeadSpec()).factor,
    }


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {"mup_denominator": INERT, "sparse_config": unless()}
    gguf = (
        Architecture(
            "minicpm",
            "MiniCPMForCausalLM",
            "interleaved",  # q and k are permuted
            keys={
                "embedding_scale": "scale_emb",
                "residual_scale": "scale_depth",
                "logit_scale": "dim_model_base",
            },
            says=_said,
            writes=_written,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias, layers = config.get("attention_bias", bool, False), config.size("num_hidden_layers")
        mixer = read.attention(config, bias=bias, output_bias=bias)
        depth = config.factor("scale_depth") / math.sqrt(layers)
        layer = replace(read.pre_norm_layer(config, mixer), residual_factor=depth)
        logits = config.factor("dim_model_base") / config.size("hidden_size")
        return read.decoder_config(
            config,
            (layer,) * layers,
            embedding=EmbeddingSpec(config.factor("scale_emb")),
            head=HeadSpec(config.get("tie_word_embeddings", bool), factor=logits),
        )
