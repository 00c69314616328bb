"""BLOOM: slopes of ALiBi, of 4 heads and of 6, q, k and v of each head end to end."""

from families import GGUF, Case, Family
from families.gpt_neox import regrouped

SIZES = {
    "vocab_size": 199, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1,
    "eos_token_id": 2, "seq_length": 64,
}  # fmt: skip


def metadata(config):
    return {
        "block_count": config["n_layer"],
        "context_length": config["seq_length"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": 4 * config["hidden_size"],
        "attention.head_count": config["n_head"],
        "attention.head_count_kv": config["n_head"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }


FAMILY = Family(
    config="BloomConfig",
    model="BloomForCausalLM",
    cases={
        "plain": Case(SIZES),
        "odd": Case(
            SIZES
            | {"hidden_size": 42, "n_head": 6, "layer_norm_epsilon": 1e-3}
            | {"tie_word_embeddings": False}
        ),
    },
    weights={"*word_embeddings.weight": (0.0, 0.5), "*ln_f.weight": (0.0, 3.0)},
    v4=lambda raw: raw | {"n_embed": raw.pop("hidden_size")},
    gguf=GGUF(
        "bloom",
        names={
            "transformer.word_embeddings": "token_embd",
            "transformer.word_embeddings_layernorm": "token_embd_norm",
            "transformer.ln_f": "output_norm",
            "self_attention.query_key_value": "attn_qkv",
            "self_attention.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        tensors=lambda tensors, config: regrouped(tensors, *2 * [config["n_head"]]),
        metadata=metadata,
    ),
)
