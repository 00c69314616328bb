"""EXAONE 4: norms after the halves, full layers without positions beside windows."""

from families import SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="Exaone4Config",
    model="Exaone4ForCausalLM",
    cases={
        "windows": Case(SIZES | {"sliding_window": 7, "num_hidden_layers": 5}),
        "full": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"sliding_window": None, "tie_word_embeddings": True}
            | {"layer_types": ["full_attention", "full_attention"]}
            | rope("linear", factor=4.0)
        ),
    },
)
