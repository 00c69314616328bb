"""OLMo: layer norms without weights, clamped q, k and v."""

from families import SMALL, Case, Family, rope, without

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
)
