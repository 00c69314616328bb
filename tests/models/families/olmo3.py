"""OLMo 3: windows, and scaled full layers."""

from families import GGUF, SMALL, Case, Family, without
from families.olmo2 import NAMES

SIZES = without(SMALL, "head_dim") | {"sliding_window": 7, "num_hidden_layers": 5}


def v4(raw):
    """One theta, and the scaling of full layers."""
    full = dict(raw.pop("rope_parameters")["full_attention"])
    raw["rope_theta"] = full.pop("rope_theta")
    return raw | ({"rope_scaling": full} if full["rope_type"] != "default" else {})


def metadata(config):
    """What is said of windows."""
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config["layer_types"]
        ],
        "rope.freq_base_swa": config["rope_parameters"]["sliding_attention"]["rope_theta"],
    }


FAMILY = Family(
    config="Olmo3Config",
    model="Olmo3ForCausalLM",
    cases={
        "windows": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
            | {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
                }
            }
        ),
    },
    v4=v4,
    gguf=GGUF("olmo2", names=NAMES, metadata=metadata),
)
