"""OPT: norms before the halves or, as in OPT-350m, after them, under a narrower embedding; norms
without weights, no biases."""

from families import COMMON, Case, Family

SIZES = COMMON | {"hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 44}
FAMILY = Family(
    config="OPTConfig",
    model="OPTForCausalLM",
    cases={
        "before": Case(SIZES),
        "after": Case(
            SIZES
            | {"do_layer_norm_before": False, "hidden_size": 42, "num_attention_heads": 6}
            | {"word_embed_proj_dim": 20}
        ),
        "narrow": Case(
            SIZES
            | {"word_embed_proj_dim": 20, "layer_norm_elementwise_affine": False}
            | {"enable_bias": False, "activation_function": "gelu"}
        ),
        "own-head": Case(SIZES | {"tie_word_embeddings": False, "_remove_final_layer_norm": True}),
    },
    weights={"*embed_positions*": (0.0, 0.6), "*decoder.final_layer_norm.weight": (3.0, 0.2)},
    v4=lambda raw: raw,
)
