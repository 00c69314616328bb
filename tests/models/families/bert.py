"""BERT: as a model alone, and under a head."""

from families import GGUF, Case, Family

SIZES = {
    "vocab_size": 199, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 50, "max_position_embeddings": 40, "type_vocab_size": 2,
}  # fmt: skip
GGUF_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q", "attention.self.key": "attn_k",
    "attention.self.value": "attn_v", "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip


def alone(tensors, config):
    """Without a head, and what it puts before the names of the model."""
    headed = f"{config['model_type']}.".replace("xlm-", "")
    kept = {name.removeprefix(headed): array for name, array in tensors.items()}
    return {n: a for n, a in kept.items() if not n.startswith(("pooler.", "cls.", "lm_head."))}


def metadata(config):
    return {"attention.layer_norm_epsilon": config["layer_norm_eps"], "attention.causal": False}


FAMILY = Family(
    config="BertConfig",
    model="BertModel",
    gguf=GGUF("bert", names=GGUF_NAMES, tensors=alone, metadata=metadata),
    cases={"pooler": Case(SIZES), "mlm": Case(SIZES, model="BertForMaskedLM")},
)
