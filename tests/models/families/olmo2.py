"""OLMo 2: norms after the halves of a layer, and over all heads of q and k."""

from families import GGUF, SMALL, Case, Family, without

SIZES = without(SMALL, "head_dim")
NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FAMILY = Family(
    config="Olmo2Config",
    model="Olmo2ForCausalLM",
    cases={
        "untied": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "rms_norm_eps": 1e-3}
        ),
    },
    gguf=GGUF(
        "olmo2",
        names=NAMES,
    ),
)
