"""Apertus: xIELU, and norms of heads."""

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="ApertusConfig",
    model="ApertusForCausalLM",
    cases={
        "plain": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "tie_word_embeddings": True}
            | rope("linear", factor=4.0)
        ),
    },
    weights={"*.eps": (-1e-6, 0.0), "*.beta": (0.5, 0.1)},
    gguf=GGUF(
        "apertus",
        names={"attention_layernorm": "attn_norm", "feedforward_layernorm": "ffn_norm"},
        numbers={f"mlp.act_fn.{n}": f"xielu.{n}" for n in ("alpha_p", "alpha_n", "beta", "eps")},
    ),
)
