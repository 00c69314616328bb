"""SmolLM3: layers without rope, by a step or by a list; windows."""

from families import GGUF, SMALL, Case, Family, rope
from families.llama import permuted


def constants(config):
    layers = config["num_hidden_layers"]
    return {
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(layers)],
        "layer_types": ["full_attention"] * layers,
    }


FAMILY = Family(
    config="SmolLM3Config",
    model="SmolLM3ForCausalLM",
    cases={
        "steps": Case(SMALL | {"num_hidden_layers": 5, "pad_token_id": 0} | rope()),
        "odd": Case(
            SMALL
            | {"num_hidden_layers": 3, "hidden_size": 21, "num_attention_heads": 7}
            | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
            | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
            | {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 9}
            | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
        ),
        "windows": Case(
            SMALL
            | {"num_hidden_layers": 3, "no_rope_layer_interval": 2, "pad_token_id": 0}
            | {"use_sliding_window": True, "sliding_window": 7}
            | rope("linear", factor=2.0)
        ),
    },
    gguf=GGUF("smollm3", tensors=permuted, constants=constants),
)
