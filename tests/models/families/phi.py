"""Phi 1 and 2: halves that share a norm, partial rope, biases."""

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="PhiConfig",
    model="PhiForCausalLM",
    cases={
        "plain": Case(SIZES, in_gguf=False),
        "phi-2": Case(SIZES | {"num_key_value_heads": 4, "intermediate_size": 128}),
        "odd": Case(
            SIZES
            | {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
            | {"qk_layernorm": True, "hidden_act": "gelu", "layer_norm_eps": 1e-2}
            | rope(partial_rotary_factor=0.25),
            in_gguf=False,
        ),
    },
    gguf=GGUF(
        "phi2",
        names={
            "self_attn.dense": "attn_output",
            "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
            "model.final_layernorm": "output_norm",
        },
        # sizes of Phi 2, whatever the model's are
        metadata=lambda config: {
            "feed_forward_length": 4 * config["hidden_size"],
            "attention.head_count_kv": config["num_attention_heads"],
            "attention.layer_norm_epsilon": config["layer_norm_eps"],
            "rope.freq_base": None,
        },
    ),
)
