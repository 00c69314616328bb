"""Hunyuan: norms of heads after rope, a base that alpha makes larger."""

from families import SMALL, Case, Family, rope


def v4(raw):
    """Its rope, which calls itself dynamic."""
    parameters = raw.pop("rope_parameters")
    raw["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    return raw if kind == "default" else raw | {"rope_scaling": {"type": kind, **parameters}}


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
)
