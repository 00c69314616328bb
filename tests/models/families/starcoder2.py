"""StarCoder 2: an MLP without a gate, a window."""

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="Starcoder2Config",
    model="Starcoder2ForCausalLM",
    cases={
        "window": Case(SIZES | {"sliding_window": 6}),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-2}
            | rope("linear", factor=4.0)
        ),
    },
    gguf=GGUF(
        "starcoder2",
        names={"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        metadata=lambda config: {"attention.layer_norm_epsilon": config["norm_epsilon"]},
        constants=lambda config: {"sliding_window": None},
    ),
)
