"""Gemma: norms stored minus 1, an old name for its activation."""

from families import GGUF, SMALL, Case, Family
from families.gemma3_text import FAMILY as GEMMA3
from families.gemma3_text import tensors

NO_ROPE = {"rope.freq_base": None, "rope.dimension_count": None}  # the converter writes neither

FAMILY = Family(
    config="GemmaConfig",
    model="GemmaForCausalLM",
    cases={
        "plain": Case(SMALL | {"pad_token_id": 0}),
        "odd": Case(
            SMALL
            | {"hidden_size": 21, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 8}
            | {"attention_bias": True, "tie_word_embeddings": False, "hidden_act": "silu"}
            | {"rms_norm_eps": 1e-3, "pad_token_id": 0},
            in_gguf=False,
        ),
    },
    weights=GEMMA3.weights,
    gguf=GGUF("gemma", tensors=tensors, metadata=lambda config: NO_ROPE),
)
