"""Arcee AFM: an MLP without a gate, of squared positive parts."""

from families import GGUF, SMALL, Case, Family, rope
from families.llama import permuted

FAMILY = Family(
    config="ArceeConfig",
    model="ArceeForCausalLM",
    cases={
        "plain": Case(SMALL),
        "odd": Case(
            SMALL
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": True, "mlp_bias": True}
            | rope("yarn", factor=4.0, original_max_position_embeddings=64)
        ),
    },
    gguf=GGUF("arcee", tensors=permuted),
)
