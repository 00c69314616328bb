"""GLM: packed gate and up, partial rope of pairs side by side, four norms."""

from families import GGUF, SMALL, Case, Family, rope

SIZES = SMALL | {"pad_token_id": None}  # the class's is beyond a small vocabulary
FAMILY = Family(
    config="Glm4Config",
    model="Glm4ForCausalLM",
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
    gguf=GGUF(
        "glm4",
        names={
            "mlp.gate_up_proj": "ffn_up",
            "post_self_attn_layernorm": "post_attention_norm",
            "post_mlp_layernorm": "post_ffw_norm",
        },
    ),
)
