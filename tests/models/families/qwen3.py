"""Qwen3: norms on the heads of q and k, one head of keys, heads that are not hidden / heads."""

from families import GGUF, SMALL, Case, Family
from families.qwen2 import WINDOW, v4

SIZES = SMALL | {"num_key_value_heads": 1, "head_dim": 24}
FAMILY = Family(
    config="Qwen3Config",
    model="Qwen3ForCausalLM",
    cases={
        "tied": Case(SIZES | {"tie_word_embeddings": True}),
        "untied": Case(SIZES | {"attention_bias": True}),
        "window": Case(SIZES | WINDOW, in_gguf=False),
    },
    v4=v4,
    gguf=GGUF("qwen3"),
)
