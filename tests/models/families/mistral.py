"""Mistral: Llama with a window, or without."""

from families import GGUF, SMALL, Case, Family
from families.llama import permuted

FAMILY = Family(
    config="MistralConfig",
    model="MistralForCausalLM",
    cases={
        "window": Case(SMALL | {"sliding_window": 8}, in_gguf=False),
        "full": Case(SMALL | {"sliding_window": None}),
    },
    gguf=GGUF("llama", tensors=permuted),
)
