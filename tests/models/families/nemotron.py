"""Nemotron: layer norms stored minus 1, partial rope, no gate."""

from families import SMALL, Case, Family, rope

FAMILY = Family(
    config="NemotronConfig",
    model="NemotronForCausalLM",
    cases={
        "plain": Case(SMALL),
        "odd": Case(
            SMALL
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-2}
            | rope(partial_rotary_factor=1.0)
        ),
    },
    weights={"*norm.weight": (0.0, 0.2)},
)
