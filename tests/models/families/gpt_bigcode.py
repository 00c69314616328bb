"""GPT-BigCode: one key and value for all heads, or one for each in another order."""

from families import GGUF, Case, Family
from families.gpt2 import GPT2_NAMES, SIZES, metadata

FAMILY = Family(
    config="GPTBigCodeConfig",
    model="GPTBigCodeForCausalLM",
    cases={
        "shared": Case(SIZES),
        "by-head": Case(
            SIZES
            | {"multi_query": False, "n_embd": 21, "n_head": 3, "n_inner": 50}
            | {"activation_function": "gelu", "scale_attn_weights": False}
            | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
            in_gguf=False,
        ),
    },
    weights={"*wpe*": (0.0, 0.6), "*ln_f.weight": (3.0, 0.2)},
    v4=lambda raw: raw,
    gguf=GGUF(
        "starcoder",
        names=GPT2_NAMES,
        metadata=lambda config: metadata(config) | {"attention.head_count_kv": 1},
    ),
)
