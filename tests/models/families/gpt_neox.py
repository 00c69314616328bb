"""GPT-NeoX: layer norms, halves of a layer that read the same input or not, partial rope."""

import numpy as np

from families import GGUF, SMALL, Case, Family, rope, without

SIZES = without(SMALL, "head_dim", "num_key_value_heads")


def v4(raw):
    parameters = raw.pop("rope_parameters")
    return raw | {
        "rotary_pct": parameters["partial_rotary_factor"],
        "rotary_emb_base": parameters["rope_theta"],
    }


def regrouped(tensors, heads, kv_heads):
    """q, k and v of all heads end to end, instead of those of each head of keys."""
    for name, array in tensors.items():
        if "query_key_value" in name:
            groups = array.reshape(kv_heads, heads // kv_heads + 2, -1, *array.shape[1:])
            parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
            tensors[name] = np.concatenate([p.reshape(-1, *array.shape[1:]) for p in parts])
    return tensors


def tensors(tensors, config):
    return regrouped(tensors, config["num_attention_heads"], config["num_attention_heads"])


def metadata(config):
    return {
        "attention.layer_norm_epsilon": config["layer_norm_eps"],
        "use_parallel_residual": config.get("use_parallel_residual", True),
    }


FAMILY = Family(
    config="GPTNeoXConfig",
    model="GPTNeoXForCausalLM",
    cases={
        "parallel": Case(SIZES),
        "serial": Case(
            SIZES
            | {"use_parallel_residual": False, "hidden_size": 36, "num_attention_heads": 3}
            | rope(partial_rotary_factor=0.5)
            | {"hidden_act": "gelu_new", "tie_word_embeddings": True}
        ),
    },
    v4=v4,
    gguf=GGUF(
        "gptneox",
        names={
            "gpt_neox.embed_in": "token_embd",
            "gpt_neox.final_layer_norm": "output_norm",
            "embed_out": "output",
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        tensors=tensors,
        metadata=metadata,
        constants=lambda config: {"hidden_act": "gelu"},
    ),
)
