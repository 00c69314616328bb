"""GLM: packed gate and up, partial rope of pairs side by side."""

from families import GGUF, SMALL, Case, Family, rope

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
    gguf=GGUF(
        "chatglm",
        names={"mlp.gate_up_proj": "ffn_up"},
        # the converter writes other sizes than the model's: a context of E, heads of E / heads
        metadata=lambda config: {
            "context_length": None,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
        },
        constants=lambda config: {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {**config["rope_parameters"], "rope_theta": 10000.0},
        },
    ),
)
