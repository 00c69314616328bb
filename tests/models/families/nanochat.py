"""nanochat: norms without weights, rotated the other way."""

from families import SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
FAMILY = Family(
    config="NanoChatConfig",
    model="NanoChatForCausalLM",
    cases={
        "plain": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"attention_bias": True, "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-2}
            | rope("linear", factor=4.0)
        ),
    },
    weights={"*fc2*": (0.0, 0.2), "*lm_head*": (0.0, 0.8)},
)
