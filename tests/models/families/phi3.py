"""Phi-3: packed products, longrope over a part of a head, a window in every layer."""

import math

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
LONGROPE = {"short_factor": [1.0, 1.2, 1.7], "long_factor": [1.0, 2.5, 6.0]}


def v4(raw):
    """The context that was trained lies beside the other sizes alone."""
    raw |= raw.pop("rope_parameters")
    kind = raw.pop("rope_type")
    factors = {name: raw.pop(name) for name in LONGROPE if name in raw}
    raw["rope_scaling"] = {"type": kind, **factors} if kind == "longrope" else None
    return raw


def metadata(config):
    scaling = config["rope_parameters"]["rope_type"] == "longrope"
    return {
        "attention.sliding_window": config["sliding_window"] or 0,
        "rope.scaling.type": None,
        "rope.scaling.original_context_length": config["original_max_position_embeddings"],
        "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(24)) if scaling else None,
    }


FAMILY = Family(
    config="Phi3Config",
    model="Phi3ForCausalLM",
    cases={
        "longrope": Case(
            SIZES
            | {"tie_word_embeddings": True, "max_position_embeddings": 96, "pad_token_id": 0}
            | {"original_max_position_embeddings": 24}
            | rope("longrope", partial_rotary_factor=0.75, **LONGROPE),
            cache_sensitive=True,
        ),
        "window": Case(
            without(SIZES, "num_key_value_heads")
            | {"hidden_size": 42, "num_attention_heads": 7, "pad_token_id": 0}
            | {"sliding_window": 9}
            | rope(partial_rotary_factor=0.7)
        ),
    },
    v4=v4,
    gguf=GGUF(
        "phi3",
        names={"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
        metadata=metadata,
    ),
)
