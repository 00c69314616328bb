"""Gemma 3: windows and two ropes by layer, a softcap, linear scaling of the full layers alone."""

from families import GGUF, SMALL, Case, Family

SIZES = SMALL | {"sliding_window": 9, "query_pre_attn_scalar": 10}


def v4(raw):
    """Two thetas by name, scaling of the full layers alone."""
    ropes = raw.pop("rope_parameters")
    full = dict(ropes["full_attention"])
    raw["rope_theta"] = full.pop("rope_theta")
    raw["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    raw["rope_scaling"] = None if full["rope_type"] == "default" else full
    return raw


def metadata(config):
    return {
        "attention.sliding_window": config["sliding_window"],
        "rope.freq_base_swa": float(config["rope_parameters"]["sliding_attention"]["rope_theta"]),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
    }


def tensors(tensors, config):
    """Norms without the 1 that the checkpoint leaves out."""
    return {n: a + 1 if n.endswith("norm.weight") else a for n, a in tensors.items()}


FAMILY = Family(
    config="Gemma3TextConfig",
    model="Gemma3ForCausalLM",
    cases={
        "tied": Case(
            SIZES
            | {"num_hidden_layers": 3}
            | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        ),
        "odd": Case(
            SIZES
            | {"num_hidden_layers": 7, "hidden_size": 21, "intermediate_size": 28, "head_dim": 8}
            | {"num_attention_heads": 3, "num_key_value_heads": 1, "final_logit_softcapping": 12.0}
            | {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
                }
            }
        ),
        "bidirectional": Case(
            SIZES
            | {"num_hidden_layers": 7, "use_bidirectional_attention": True}
            | {"query_pre_attn_scalar": 16},
            model="Gemma3TextModel",
        ),
    },
    # norms are stored minus 1, and what is embedded is multiplied by √E
    weights={
        "model.norm.weight": (4.0, 0.2), "*norm.weight": (0.0, 0.2), "*embed_tokens*": (0.0, 0.1)
    },
    v4=v4,
    gguf=GGUF(
        "gemma3",
        encoder="gemma-embedding",
        names={
            "embed_tokens": "token_embd",
            "norm": "output_norm",
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        tensors=tensors,
        metadata=metadata,
        constants=lambda c: {"query_pre_attn_scalar": c["head_dim"], "layer_types": None},
    ),
)  # fmt: skip
