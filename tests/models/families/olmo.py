"""OLMo: layer norms without weights, clamped q, k and v."""

from families import GGUF, SMALL, Case, Family, rope, without
from families.llama import permuted

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="OlmoConfig",
    model="OlmoForCausalLM",
    cases={
        "clipped": Case(SIZES | {"clip_qkv": 1.5}),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "tie_word_embeddings": True}
            | rope("linear", factor=4.0)
        ),
    },
    gguf=GGUF(
        "olmo",
        tensors=permuted,  # the converter forgets biases, which no checkpoint has
        metadata=lambda config: {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.clamp_kqv": config["clip_qkv"],
        },
    ),
)
