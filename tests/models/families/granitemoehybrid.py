"""Granite 4 of attention layers alone, without experts: with rope and without any positions."""

import numpy as np

from families import GGUF, SMALL, Case, Family, flat_rope, rope, without
from families.granite import FAMILY as GRANITE
from families.granite import metadata
from families.llama import permuted

SIZES = without(SMALL, "head_dim") | {
    "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 44,
    "layer_types": ["full_attention", "full_attention"],
    "mamba_n_heads": 8, "mamba_d_head": 8,  # 2 · E, which the class wants
    "embedding_multiplier": 1.4, "attention_multiplier": 0.2, "logits_scaling": 0.8,
    "residual_multiplier": 0.9,
}  # fmt: skip


def v4(raw):
    raw["layer_types"] = ["attention", "attention"]
    return flat_rope(raw)


def tensors(tensors, config):
    """gate and up apart."""
    split = {}
    for name, array in permuted(tensors, config).items():
        if "input_linear" in name:
            gate, up = np.split(array, 2)
            split[name.replace("shared_mlp.input_linear", "mlp.gate_proj")] = gate
            split[name.replace("shared_mlp.input_linear", "mlp.up_proj")] = up
        else:
            split[name] = array
    return split


FAMILY = Family(
    config="GraniteMoeHybridConfig",
    model="GraniteMoeHybridForCausalLM",
    cases={
        "rope": Case(
            SIZES | {"position_embedding_type": "rope", "tie_word_embeddings": True} | rope()
        ),
        "nowhere": Case(SIZES | {"attention_bias": True, "num_key_value_heads": 1}, in_gguf=False),
    },
    weights=GRANITE.weights,
    v4=v4,
    gguf=GGUF(
        "granite",
        names={"shared_mlp.output_linear": "ffn_down"},
        tensors=tensors,
        metadata=metadata,
    ),
)
