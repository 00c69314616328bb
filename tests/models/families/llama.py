"""Llama: odd sizes, biases, every scaling of the rope, bf16, shards."""

from families import COMMON, GGUF, SMALL, Case, Family, rope

TIED = SMALL | {"tie_word_embeddings": True}
SHORT = TIED | {"max_position_embeddings": 96}  # scaled 4x from 24: prompts of 40 lie beyond 24
LONGROPE = {
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.3, 1.9, 2.6, 3.3, 4.5, 6.0, 8.0],
}
LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip


def permuted(tensors, config):
    """Rows of q and k: the halves of a head's rotated pairs side by side."""
    counts = {
        "q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]
    }  # fmt: skip
    for name, array in tensors.items():
        count = counts.get(name.split(".")[-2])
        if count:
            pairs = array.reshape(count, 2, -1, *array.shape[1:])
            tensors[name] = pairs.swapaxes(1, 2).reshape(array.shape)
    return tensors


FAMILY = Family(
    config="LlamaConfig",
    model="LlamaForCausalLM",
    cases={
        "untied": Case(SMALL | {"hidden_size": 36, "num_attention_heads": 6, "head_dim": 8}),
        "tied": Case(TIED | rope()),
        "odd": Case(
            COMMON
            | {"hidden_size": 21, "intermediate_size": 45, "head_dim": 80, "num_hidden_layers": 1}
            | {"num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "mlp_bias": True}
        ),
        "linear": Case(TIED | rope("linear", factor=4.0)),
        "dynamic": Case(
            TIED | rope("dynamic", factor=4.0) | {"max_position_embeddings": 24},
            cache_sensitive=True,
            in_gguf=False,
        ),
        "llama3": Case(TIED | rope("llama3", **LLAMA3)),
        "yarn": Case(
            SHORT | rope("yarn", factor=4.0, original_max_position_embeddings=24, beta_fast=8.0)
        ),
        "longrope": Case(
            SHORT | rope("longrope", original_max_position_embeddings=24, **LONGROPE),
            cache_sensitive=True,
        ),
        "bf16": Case(SMALL | {"num_attention_heads": 2}, dtype="bfloat16"),
        "sharded": Case(SMALL | {"num_hidden_layers": 1}, shards=3),
    },
    gguf=GGUF("llama", tensors=permuted),
)
