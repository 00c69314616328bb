"""MPT: no biases, slopes of ALiBi, clamped q, k and v, another scale of scores."""

from families import GGUF, Case, Family

SIZES = {
    "vocab_size": 199, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def metadata(config):
    own = config["attn_config"]
    return {
        "block_count": config["n_layers"],
        "context_length": config["max_seq_len"],
        "embedding_length": config["d_model"],
        "feed_forward_length": 4 * config["d_model"],
        "attention.head_count": config["n_heads"],
        "attention.layer_norm_epsilon": 1e-5,
        "attention.clamp_kqv": own["clip_qkv"],
        "attention.max_alibi_bias": float(own["alibi_bias_max"]),
    }


FAMILY = Family(
    config="MptConfig",
    model="MptForCausalLM",
    cases={
        "clipped": Case(SIZES | {"attn_config": {"clip_qkv": 1.5}}),
        "odd": Case(
            SIZES
            | {"d_model": 42, "n_heads": 6, "layer_norm_epsilon": 1e-3}
            | {"tie_word_embeddings": False, "attn_config": {"softmax_scale": 0.6}},
            in_gguf=False,
        ),
    },
    weights={"*wte*": (0.0, 0.5), "*norm_f.weight": (0.0, 3.0)},
    v4=lambda raw: raw,
    gguf=GGUF(
        "mpt",
        names={
            "transformer.wte": "token_embd",
            "transformer.norm_f": "output_norm",
            "norm_1": "attn_norm",
            "norm_2": "ffn_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.out_proj": "attn_output",
            "ffn.up_proj": "ffn_up",
            "ffn.down_proj": "ffn_down",
        },
        metadata=metadata,
    ),
)
