"""Nomic BERT: without a second type, heads of a size of their own; under a head."""

from families import GGUF, Case, Family, bert, rope

SIZES = bert.SIZES | {"hidden_size": 32}
NAMES = {
    "emb_ln": "token_embd_norm", "attn.Wqkv": "attn_qkv", "attn.out_proj": "attn_output",
    "norm1": "attn_output_norm", "mlp.fc11": "ffn_up", "mlp.fc12": "ffn_gate",
    "mlp.fc2": "ffn_down", "norm2": "layer_output_norm",
}  # fmt: skip
FAMILY = Family(
    config="NomicBertConfig",
    model="NomicBertModel",
    gguf=GGUF(
        "nomic-bert", names=bert.GGUF_NAMES | NAMES, tensors=bert.alone, metadata=bert.metadata
    ),
    cases={
        "types": Case(SIZES),
        "mlm": Case(
            SIZES | {"head_dim": 10, "type_vocab_size": 1, "hidden_act": "gelu"} | rope(theta=77.0),
            model="NomicBertForMaskedLM",
        ),
    },
)
