"""MiniCPM: factors on the embedding, the residual and logits.

transformers has no such class. Granite, with the same factors under other names, computes the same.
"""

import math

from families import GGUF, SMALL, Case, Family, rope, without
from families.llama import LONGROPE, permuted

SIZES = without(SMALL, "head_dim")
GRANITES = (
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier",
    "mlp_bias",
)  # fmt: skip

# of the code beside its checkpoints
DEFAULTS = {
    "model_type": "minicpm", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 2048,
    "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "pretraining_tp": 1, "tie_word_embeddings": True,
    "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False,
    "attention_dropout": 0.0, "scale_emb": 1, "dim_model_base": 1, "scale_depth": 1,
    "mup_denominator": None, "sparse_config": None,
}  # fmt: skip


def factors(hidden_size, heads, emb, depth, base):
    """Granite's, of two layers."""
    return {
        "hidden_size": hidden_size, "num_attention_heads": heads, "embedding_multiplier": emb,
        "residual_multiplier": depth / math.sqrt(2), "logits_scaling": hidden_size / base,
        "attention_multiplier": (hidden_size // heads) ** -0.5,
    }  # fmt: skip


def own(raw):
    layers, base = raw["num_hidden_layers"], raw["hidden_size"] / raw["logits_scaling"]
    return without(raw, *GRANITES) | {
        "model_type": "minicpm",
        "architectures": ["MiniCPMForCausalLM"],
        "scale_emb": raw["embedding_multiplier"],
        "scale_depth": round(raw["residual_multiplier"] * math.sqrt(layers), 6),
        "dim_model_base": round(base, 6),
    }


def metadata(config):
    return {
        "embedding_scale": float(config["scale_emb"]),
        "residual_scale": config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        "logit_scale": config["hidden_size"] / config["dim_model_base"],
    }


FAMILY = Family(
    config="GraniteConfig",
    model="GraniteForCausalLM",
    cases={
        "tied": Case(
            SIZES
            | factors(64, 4, 3.0, 1.4, 48)
            | {"tie_word_embeddings": True, "max_position_embeddings": 96}
            | rope("longrope", original_max_position_embeddings=24, **LONGROPE),
            cache_sensitive=True,
        ),
        "odd": Case(
            SIZES
            | factors(42, 7, 1.7, 0.9, 60)
            | {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": False}
        ),
    },
    weights={"model.norm.weight": (3.0, 0.2), "*embed_tokens*": (0.0, 0.15)},
    own=own,
    defaults=DEFAULTS,
    gguf=GGUF("minicpm", tensors=permuted, metadata=metadata),
)
