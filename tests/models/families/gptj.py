"""GPT-J: rotated pairs side by side, halves that share a norm, a head with a bias."""

from families import Case, Family, without
from families.gpt2 import SIZES

FAMILY = Family(
    config="GPTJConfig",
    model="GPTJForCausalLM",
    cases={
        "partial": Case(SIZES | {"n_embd": 64, "rotary_dim": 8}),
        "odd": Case(
            without(SIZES, "n_embd")
            | {"n_embd": 42, "n_head": 3, "rotary_dim": 14, "n_inner": 50}
            | {"activation_function": "relu", "layer_norm_epsilon": 1e-3},
        ),
    },
    v4=lambda raw: raw,
)
