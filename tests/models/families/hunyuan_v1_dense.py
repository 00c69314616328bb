"""Hunyuan: norms of heads after rope, a base that alpha makes larger."""

from families import GGUF, SMALL, Case, Family, rope


def v4(raw):
    """Its rope, which calls itself dynamic."""
    parameters = raw.pop("rope_parameters")
    raw["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    return raw if kind == "default" else raw | {"rope_scaling": {"type": kind, **parameters}}


def metadata(config):
    """The larger base; the context is then a constant of the converter."""
    rope, width = config["rope_parameters"], config["head_dim"]
    if rope["rope_type"] != "dynamic":
        return {}
    grown = rope["rope_theta"] * rope["alpha"] ** (width / (width - 2))
    return {"rope.freq_base": grown, "context_length": None}


FAMILY = Family(
    config="HunYuanDenseV1Config",
    model="HunYuanDenseV1ForCausalLM",
    cases={
        "alpha": Case(SMALL | rope("dynamic", alpha=50.0, factor=1.0)),
        "odd": Case(
            SMALL
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True}
        ),
    },
    v4=v4,
    gguf=GGUF(
        "hunyuan-dense",
        names={
            "self_attn.query_layernorm": "attn_q_norm",
            "self_attn.key_layernorm": "attn_k_norm",
        },
        metadata=metadata,
    ),
)
