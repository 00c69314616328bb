"""GLM: packed gate and up, partial rope of pairs side by side."""

from families import SMALL, Case, Family, rope

SIZES = SMALL | {"pad_token_id": None}  # the class's is beyond a small vocabulary
FAMILY = Family(
    config="GlmConfig",
    model="GlmForCausalLM",
    cases={
        "biased": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": False, "tie_word_embeddings": True}
            | {"rms_norm_eps": 1e-2}
            | rope(partial_rotary_factor=1.0)
        ),
    },
)
