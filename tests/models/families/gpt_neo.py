"""GPT Neo: scores that are not scaled, windows in some layers."""

from families import COMMON, Case, Family, without

SIZES = without(COMMON, "num_hidden_layers") | {"hidden_size": 32, "num_heads": 4}
FAMILY = Family(
    config="GPTNeoConfig",
    model="GPTNeoForCausalLM",
    cases={
        "in-turn": Case(
            SIZES
            | {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 5}
        ),
        "odd": Case(
            SIZES
            | {"num_layers": 3, "attention_types": [[["local"], 2], [["global"], 1]]}
            | {"hidden_size": 21, "num_heads": 3, "intermediate_size": 50, "window_size": 1}
            | {"activation_function": "relu", "layer_norm_epsilon": 1e-3}
            | {"tie_word_embeddings": False},
        ),
    },
    # q and k such that scores, which are not divided, are near 1
    weights={"*.[qk]_proj*": (0.0, 0.12), "*wpe*": (0.0, 0.6), "*ln_f.weight": (3.0, 0.2)},
    v4=lambda raw: raw,
)
