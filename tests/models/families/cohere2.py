"""Command R7B: windows, and full layers without positions."""

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
SIZES |= {"logit_scale": 0.5, "sliding_window": 7, "num_hidden_layers": 5}
FAMILY = Family(
    config="Cohere2Config",
    model="Cohere2ForCausalLM",
    cases={
        "windows": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "tie_word_embeddings": False, "num_hidden_layers": 2}
            | {"layer_types": ["full_attention", "sliding_attention"]}
            | rope("linear", factor=4.0),
            in_gguf=False,
        ),
    },
    gguf=GGUF(
        "cohere2",
        metadata=lambda config: {
            "attention.layer_norm_epsilon": config["layer_norm_eps"],
            "attention.sliding_window": config["sliding_window"],
            "logit_scale": config["logit_scale"],
        },
    ),
)
