"""Granite: factors on the embedding, the scores, the residual and the logits."""

from families import GGUF, SMALL, Case, Family, rope, without
from families.llama import LLAMA3, permuted

SIZES = without(SMALL, "head_dim")


def metadata(config):
    return {
        "attention.scale": float(config["attention_multiplier"]),
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
    }


FAMILY = Family(
    config="GraniteConfig",
    model="GraniteForCausalLM",
    cases={
        "factors": Case(
            SIZES
            | {"embedding_multiplier": 1.7, "attention_multiplier": 0.4, "logits_scaling": 0.7}
            | {"residual_multiplier": 0.8, "tie_word_embeddings": True}
            | rope("llama3", **LLAMA3)
        ),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 1.5}
            | rope()
        ),
    },
    weights={"model.norm.weight": (3.0, 0.2), "*embed_tokens*": (0.0, 0.15)},
    gguf=GGUF("granite", tensors=permuted, metadata=metadata),
)
