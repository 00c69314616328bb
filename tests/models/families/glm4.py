"""GLM: packed gate and up, partial rope of pairs side by side, four norms."""

from families import GGUF, Family, glm

FAMILY = Family(
    config="Glm4Config",
    model="Glm4ForCausalLM",
    cases=glm.CASES,
    gguf=GGUF(
        "glm4",
        names={
            "mlp.gate_up_proj": "ffn_up",
            "post_self_attn_layernorm": "post_attention_norm",
            "post_mlp_layernorm": "post_ffw_norm",
        },
    ),
)
