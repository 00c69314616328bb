"""Gemma 2: softcaps or none, windows in every second layer or by a list."""

from families import GGUF, SMALL, Case, Family, rope
from families.gemma import NO_ROPE
from families.gemma3_text import FAMILY as GEMMA3
from families.gemma3_text import tensors

SIZES = SMALL | {"sliding_window": 9, "query_pre_attn_scalar": 10, "pad_token_id": 0}


def metadata(config):
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    window = {"attention.sliding_window": config["sliding_window"]}
    return NO_ROPE | window | {name: config[name] for name in names}


FAMILY = Family(
    config="Gemma2Config",
    model="Gemma2ForCausalLM",
    cases={
        "softcaps": Case(
            SIZES
            | {"num_hidden_layers": 3, "attn_logit_softcapping": 2.0}
            | {"final_logit_softcapping": 5.0}
        ),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 8}
            | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
            | {"layer_types": ["full_attention", "sliding_attention"], "attention_bias": True}
            | rope(),
            in_gguf=False,
        ),
    },
    weights=GEMMA3.weights,
    gguf=GGUF(
        "gemma2",
        names=GEMMA3.gguf.names,
        tensors=tensors,
        metadata=metadata,
        constants=lambda c: {"query_pre_attn_scalar": c["head_dim"], "layer_types": None},
    ),
)
