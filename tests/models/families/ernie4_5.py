"""ERNIE 4.5: pairs side by side, biases everywhere."""

from families import GGUF, SMALL, Case, Family, rope

FAMILY = Family(
    config="Ernie4_5Config",
    model="Ernie4_5ForCausalLM",
    cases={
        "tied": Case(SMALL),
        "odd": Case(
            SMALL
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "use_bias": True, "tie_word_embeddings": False}
            | rope("linear", factor=4.0)
        ),
    },
    gguf=GGUF("ernie4_5"),
)
