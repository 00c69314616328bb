"""GLM: packed gate and up, partial rope of pairs side by side."""

from families import GGUF, SMALL, Case, Family, rope

SIZES = SMALL | {"pad_token_id": None}  # the class's is beyond a small vocabulary
CASES = {
    "biased": Case(SIZES),
    "odd": Case(
        SIZES
        | {"hidden_size": 84, "num_attention_heads": 7, "num_key_value_heads": 1}
        | {"head_dim": 12, "attention_bias": False, "tie_word_embeddings": True}
        | {"rms_norm_eps": 1e-2}
        | rope(partial_rotary_factor=1.0)
    ),
}
FAMILY = Family(
    config="GlmConfig",
    model="GlmForCausalLM",
    cases={
        "biased": Case(SIZES, in_gguf=False),
        "odd": CASES["odd"],
        "glm-4": Case(SIZES | {"hidden_size": 64}),
    },
    gguf=GGUF(
        "chatglm",
        names={"mlp.gate_up_proj": "ffn_up"},
        # heads are E / heads wide, whatever the config says; the context, of E, is left out
        metadata=lambda config: {
            "context_length": None,
            "attention.key_length": None,
            "attention.value_length": None,
            "rope.dimension_count": int(
                config["hidden_size"]
                // config["num_attention_heads"]
                * config["rope_parameters"]["partial_rotary_factor"]
            ),
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
        },
        constants=lambda config: {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {**config["rope_parameters"], "rope_theta": 10000.0},
        },
    ),
)
