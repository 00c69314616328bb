"""OLMo 3: windows, and scaled full layers."""

from families import SMALL, Case, Family, without

SIZES = without(SMALL, "head_dim") | {"sliding_window": 7, "num_hidden_layers": 5}


def v4(raw):
    """One theta, and the scaling of full layers."""
    full = dict(raw.pop("rope_parameters")["full_attention"])
    raw["rope_theta"] = full.pop("rope_theta")
    return raw | ({"rope_scaling": full} if full["rope_type"] != "default" else {})


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
)
