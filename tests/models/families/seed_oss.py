"""Seed-OSS: biases of q, k and v, and of the output apart."""

from families import GGUF, SMALL, Case, Family, rope

FAMILY = Family(
    config="SeedOssConfig",
    model="SeedOssForCausalLM",
    cases={
        "biased": Case(SMALL),
        "odd": Case(
            SMALL
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": False, "attention_out_bias": True}
            | {"mlp_bias": True, "tie_word_embeddings": True}
            | rope("linear", factor=4.0)
        ),
    },
    gguf=GGUF("seed_oss", names={"post_attention_layernorm": "post_attention_norm"}),
)
