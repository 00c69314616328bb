"""StableLM: partial rope, norms of each head, halves that share a norm."""

from families import SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="StableLmConfig",
    model="StableLmForCausalLM",
    cases={
        "parallel": Case(
            SIZES
            | {"use_parallel_residual": True, "qk_layernorm": True, "hidden_size": 64}
            | {"tie_word_embeddings": True}
        ),
        "serial": Case(
            SIZES
            | {"use_qkv_bias": True, "hidden_size": 48, "num_attention_heads": 3}
            | {"num_key_value_heads": 3, "layer_norm_eps": 1e-2}
            | rope(partial_rotary_factor=0.5)
        ),
    },
)
