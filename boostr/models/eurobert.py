"""EuroBERT: Llama whose tokens see every token of their text."""

from __future__ import annotations

from boostr.io.settings import INERT, Table
from boostr.models import config as read
from boostr.models import encoder
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = {
    "vocab_size": 128256, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
}  # fmt: skip
KEYS: Table = dict.fromkeys(("mask_token_id", "classifier_pooling"), INERT)  # of heads


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = KEYS
    gguf = (Architecture("eurobert", "EuroBertModel"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias = config.get("attention_bias", bool, False)
        mixer = read.attention(config, bias=bias, output_bias=bias, causal=False)
        layer = read.pre_norm_layer(config, mixer)
        positions = config.size("max_position_embeddings")
        return encoder.encoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            norm=read.rms_norm(config),
            ropes={"full": read.rope_config(config, mixer.head_dim, positions)},
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        return encoder.llamas_names()
