"""Nemotron: layer norms stored minus 1, partial rope, no gate."""

from families import GGUF, SMALL, Case, Family, rope
from families.gemma3_text import tensors

FAMILY = Family(
    config="NemotronConfig",
    model="NemotronForCausalLM",
    cases={
        "plain": Case(SMALL, in_gguf=False),
        "minitron": Case(SMALL | {"hidden_size": 64}),
        "odd": Case(
            SMALL
            | {"hidden_size": 84, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-2}
            | rope(partial_rotary_factor=1.0)
        ),
    },
    weights={"*norm.weight": (0.0, 0.2)},
    gguf=GGUF(
        "nemotron",
        tensors=tensors,
        # of E / heads it rotates a part, which not all checkpoints have for the width of a head
        metadata=lambda config: {
            "attention.layer_norm_epsilon": config["norm_eps"],
            "rope.dimension_count": int(
                config["rope_parameters"]["partial_rotary_factor"] * config["hidden_size"]
            )
            // config["num_attention_heads"],
        },
    ),
)
