"""DistilBERT: learned positions, and sinusoids, which are weights too."""

from families import GGUF, Case, Family, bert

SIZES = {
    "vocab_size": 199, "dim": 36, "n_layers": 2, "n_heads": 4, "hidden_dim": 50,
    "max_position_embeddings": 40,
}  # fmt: skip
ODD = {"dim": 30, "n_heads": 3, "activation": "relu", "sinusoidal_pos_embds": True}
GGUF_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.q_lin": "attn_q", "attention.k_lin": "attn_k", "attention.v_lin": "attn_v",
    "attention.out_lin": "attn_output", "sa_layer_norm": "attn_output_norm",
    "ffn.lin1": "ffn_up", "ffn.lin2": "ffn_down", "output_layer_norm": "layer_output_norm",
}  # fmt: skip


def tensors(tensors, config):
    """Without a head."""
    return {n: a for n, a in bert.alone(tensors, config).items() if not n.startswith("vocab_")}


def metadata(config):
    return {
        "block_count": config["n_layers"], "embedding_length": config["dim"],
        "feed_forward_length": config["hidden_dim"], "attention.head_count": config["n_heads"],
        "attention.layer_norm_epsilon": 1e-12, "attention.causal": False,
    }  # fmt: skip


FAMILY = Family(
    config="DistilBertConfig",
    model="DistilBertModel",
    gguf=GGUF("bert", names=GGUF_NAMES, tensors=tensors, metadata=metadata),
    cases={"learned": Case(SIZES), "mlm": Case(SIZES | ODD, model="DistilBertForMaskedLM")},
)
