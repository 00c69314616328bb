"""EXAONE 4: norms after the halves, full layers without positions beside windows."""

from families import GGUF, SMALL, Case, Family, rope, without
from families.olmo2 import NAMES

SIZES = without(SMALL, "head_dim")


def metadata(config):
    """What is said of windows."""
    window = config["sliding_window"]
    flags = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": flags if window else None,
    }


FAMILY = Family(
    config="Exaone4Config",
    model="Exaone4ForCausalLM",
    cases={
        "windows": Case(SIZES | {"sliding_window": 7, "num_hidden_layers": 5}),
        "full": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"sliding_window": None, "tie_word_embeddings": True}
            | {"layer_types": ["full_attention", "full_attention"]}
            | rope("linear", factor=4.0)
        ),
    },
    gguf=GGUF("exaone4", names=NAMES, metadata=metadata),
)
