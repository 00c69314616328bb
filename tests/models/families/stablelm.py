"""StableLM: partial rope, norms of each head, halves that share a norm."""

import numpy as np

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim")
NAMES = {"self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm"}


def tensors(tensors, config):
    """The norms of heads of a layer in one tensor."""
    out, stacks = {}, {}
    for name, array in tensors.items():
        stack, found, _ = name.partition(".norms.")
        if found:
            stacks.setdefault(f"{stack}.weight", []).append((int(name.split(".")[-2]), array))
        else:
            out[name] = array
    order = {name: sorted(items, key=lambda item: item[0]) for name, items in stacks.items()}
    return out | {name: np.stack([array for _, array in items]) for name, items in order.items()}


def metadata(config):
    return {
        "attention.layer_norm_epsilon": config["layer_norm_eps"],
        "use_parallel_residual": config["use_parallel_residual"],
        "rope.freq_base": None,
    }


def constants(config):
    return {"rope_parameters": {**config["rope_parameters"], "rope_theta": 10000.0}}


FAMILY = Family(
    config="StableLmConfig",
    model="StableLmForCausalLM",
    cases={
        "parallel": Case(
            SIZES
            | {"use_parallel_residual": True, "qk_layernorm": True, "hidden_size": 64}
            | {"tie_word_embeddings": True}
        ),
        "serial": Case(
            SIZES
            | {"use_qkv_bias": True, "hidden_size": 48, "num_attention_heads": 3}
            | {"num_key_value_heads": 3, "layer_norm_eps": 1e-2}
            | rope(partial_rotary_factor=0.5)
        ),
    },
    gguf=GGUF("stablelm", tensors=tensors, names=NAMES, metadata=metadata, constants=constants),
)
