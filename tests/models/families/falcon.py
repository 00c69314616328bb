"""Falcon: four ways in which q, k and v lie, one norm or two, rope or ALiBi, one half after the
other or both of the same input."""

from families import COMMON, GGUF, Case, Family, rope
from families.gpt_neox import regrouped

SIZES = COMMON | {
    "max_position_embeddings": 2048,  # as the converter always says
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 44,
}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}


def tensors(tensors, config):
    return regrouped(tensors, config["num_attention_heads"], config["num_kv_heads"])


def metadata(config):
    return {
        "feed_forward_length": config["ffn_hidden_size"],
        "attention.head_count_kv": config["num_kv_heads"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        "rope.dimension_count": None,
        "rope.freq_base": None,
    }


FAMILY = Family(
    config="FalconConfig",
    model="FalconForCausalLM",
    cases={
        "shared": Case(SIZES | {"num_kv_heads": 1}),
        "two-norms": Case(SIZES | NEW),
        "one-norm": Case(
            SIZES
            | {"new_decoder_architecture": True, "num_kv_heads": 3, "num_attention_heads": 6}
            | rope("linear", factor=4.0)
            | {"hidden_size": 60, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
            in_gguf=False,
        ),
        "alibi": Case(
            SIZES
            | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
            | {"hidden_size": 60, "num_attention_heads": 6, "layer_norm_epsilon": 1e-3}
            | {"activation": "relu"},
            in_gguf=False,
            attention="sdpa",  # the eager one adds ALiBi twice
        ),
    },
    weights={"*word_embeddings.weight": (0.0, 0.5), "*ln_f.weight": (0.0, 3.0)},
    gguf=GGUF(
        "falcon",
        names={
            "transformer.word_embeddings": "token_embd",
            "transformer.ln_f": "output_norm",
            "self_attention.query_key_value": "attn_qkv",
            "self_attention.dense": "attn_output",
            "input_layernorm": "attn_norm",
            "ln_attn": "attn_norm_2",
            "ln_mlp": "attn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        tensors=tensors,
        metadata=metadata,
    ),
)
