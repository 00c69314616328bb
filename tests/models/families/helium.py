"""Helium: pairs side by side."""

from families import SMALL, Case, Family, rope

SIZES = SMALL | {"head_dim": 8}
FAMILY = Family(
    config="HeliumConfig",
    model="HeliumForCausalLM",
    cases={
        "plain": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 84, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True}
            | rope("linear", factor=4.0)
        ),
    },
)
