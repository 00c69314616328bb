"""BERT (MiniLM, BGE, E5): learned positions, token types, and a norm after each half of a layer."""

from __future__ import annotations

from typing import Any

from boostr.errors import ModelFileError
from boostr.io.settings import unless
from boostr.models import config as read
from boostr.models import encoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, NormSpec

DEFAULTS = {
    "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
POSITIONS = {"position_embedding_type": unless("absolute")}  # as transformers 4 had others
KEYS = {**POSITIONS, "is_decoder": unless(False)}
EMBEDDINGS = (
    plan.rename("embeddings.word_embeddings", "model.embed_tokens"),
    plan.rename("embeddings.position_embeddings", "model.embed_positions"),
    plan.rename("embeddings.token_type_embeddings", "model.embed_types"),
    plan.rename("embeddings.LayerNorm", "model.embed_norm"),
)
FEED_FORWARD = (
    plan.rename("encoder.layer.{i}.intermediate.dense", "model.layers.{i}.mlp.up_proj"),
    plan.rename("encoder.layer.{i}.output.dense", "model.layers.{i}.mlp.down_proj"),
    plan.rename("encoder.layer.{i}.output.LayerNorm", "model.layers.{i}.mlp_output_norm"),
)


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = KEYS
    gguf = (  # of RoBERTa's kind the files have the rows of positions that texts take
        Architecture(
            "bert",
            "BertModel",
            names=lambda config: encoder.POST_NORMS,
            keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        return bert_config(config.filled(**DEFAULTS))

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        return bert_plan("bert.", "cls.")


def bert_config(config: RawConfig, first_position: int = 0, **embedding: Any) -> ModelConfig:
    """BERT's encoder of a config with all defaults filled in.

    Args:
        first_position: the row of position 0; those before it serve no text.
        embedding: of `EmbeddingSpec`, what a family has otherwise.
    """
    norm = NormSpec(config.get("layer_norm_eps", float), "layer", bias=True)
    positions = config.size("max_position_embeddings")
    if first_position >= positions:
        raise ModelFileError(
            f"{config.source}: max_position_embeddings must be above {first_position}, which its "
            f"pad_token_id takes, got {positions}"
        )
    mixer = read.attention(config, bias=True, output_bias=True, rope=None, causal=False)
    layer = LayerSpec(
        mixer,
        read.mlp(config, gated=False, bias=True),
        LayerNorms(after_mixer=norm, after_mlp=norm),
        "post",
    )
    tables = {"positions": positions, "first_position": first_position, "norm": norm}
    if "types" not in embedding:
        tables["types"] = config.size("type_vocab_size")
    return encoder.encoder_config(
        config,
        (layer,) * config.size("num_hidden_layers"),
        max_position_embeddings=positions - first_position,
        embedding=EmbeddingSpec(**{**tables, **embedding}),
    )


def bert_plan(prefix: str, *heads: str) -> LoadPlan:
    """BERT's names, see `encoder.model_alone`; old checkpoints have gamma and beta."""
    layer, canonical = "encoder.layer.{i}.", "model.layers.{i}."
    return encoder.model_alone(prefix, *heads) + LoadPlan((
        plan.alias("{path}.LayerNorm.gamma", "{path}.LayerNorm.weight"),
        plan.alias("{path}.LayerNorm.beta", "{path}.LayerNorm.bias"),
        *EMBEDDINGS,
        plan.rename(layer + "attention.self.query", canonical + "self_attn.q_proj"),
        plan.rename(layer + "attention.self.key", canonical + "self_attn.k_proj"),
        plan.rename(layer + "attention.self.value", canonical + "self_attn.v_proj"),
        plan.rename(layer + "attention.output.dense", canonical + "self_attn.o_proj"),
        plan.rename(layer + "attention.output.LayerNorm", canonical + "attention_output_norm"),
        *FEED_FORWARD,
    ))  # fmt: skip
