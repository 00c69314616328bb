"""Command R: halves that share a norm, pairs side by side, scaled logits."""

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim") | {"logit_scale": 0.5}
FAMILY = Family(
    config="CohereConfig",
    model="CohereForCausalLM",
    cases={
        "tied": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False}
            | rope("linear", factor=4.0),
            in_gguf=False,
        ),
    },
    gguf=GGUF(
        "command-r",
        metadata=lambda config: {
            "attention.layer_norm_epsilon": config["layer_norm_eps"],
            "logit_scale": config["logit_scale"],
        },
    ),
)
