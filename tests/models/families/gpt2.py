"""GPT-2: products that lie [in, out], learned positions, other scales of scores."""

from families import GGUF, Case, Family

SIZES = {
    "vocab_size": 199, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def tensors(tensors, config):
    """Products lie [out, in]."""
    return {n: a.T if ".c_" in n and a.ndim == 2 else a for n, a in tensors.items()}


def metadata(config):
    return {
        "block_count": config["n_layer"],
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": 4 * config["n_embd"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }


FAMILY = Family(
    config="GPT2Config",
    model="GPT2LMHeadModel",
    cases={
        "plain": Case(SIZES),
        "odd": Case(
            SIZES
            | {"n_embd": 21, "n_head": 3, "n_inner": 50, "activation_function": "relu"}
            | {"scale_attn_weights": False, "tie_word_embeddings": False}
            | {"layer_norm_epsilon": 1e-3},
            in_gguf=False,
        ),
        "by-layer": Case(SIZES | {"scale_attn_by_inverse_layer_idx": True}, in_gguf=False),
    },
    weights={"*wpe*": (0.0, 0.6), "*ln_f.weight": (3.0, 0.2)},
    v4=lambda raw: raw,
    gguf=GGUF(
        "gpt2",
        names=GPT2_NAMES,
        tensors=tensors,
        metadata=metadata,
    ),
)
