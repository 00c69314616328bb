"""ModernBERT: windows of layers by their number or by name, two thetas, with and without biases."""

from families import GGUF, Case, Family

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
SIZES = {
    "vocab_size": 199, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 44, "max_position_embeddings": 64, "local_attention": 12,
    **dict.fromkeys(SPECIAL, 1),
}  # fmt: skip
BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), True)


def v4(raw):
    """Two thetas by name, and full layers by their number."""
    ropes = raw.pop("rope_parameters")
    raw["global_rope_theta"] = ropes["full_attention"]["rope_theta"]
    raw["local_rope_theta"] = ropes["sliding_attention"]["rope_theta"]
    full = [i for i, kind in enumerate(raw["layer_types"]) if kind == "full_attention"]
    if full == list(range(0, len(raw["layer_types"]), 3)):
        raw["global_attn_every_n_layers"] = 3
        del raw["layer_types"]
    return raw


def tensors(tensors, config):
    kept = {name.removeprefix("model."): a for name, a in tensors.items()}
    return {n: a for n, a in kept.items() if not n.startswith(("head.", "decoder."))}


def metadata(config):
    ropes = config["rope_parameters"]
    return {
        "attention.causal": False,
        "attention.layer_norm_epsilon": config["norm_eps"],
        "attention.sliding_window": config["local_attention"],
        "rope.freq_base_swa": float(ropes["sliding_attention"]["rope_theta"]),
        "hidden_activation": config["hidden_activation"],
    }


FAMILY = Family(
    config="ModernBertConfig",
    model="ModernBertModel",
    cases={
        "third": Case(SIZES),
        "mlm": Case(
            SIZES
            | BIASES
            | {"num_hidden_layers": 3, "local_attention": 7, "hidden_activation": "silu"}
            | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
            | {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
                }
            },
            model="ModernBertForMaskedLM",
        ),
    },
    v4=v4,
    gguf=GGUF(
        "modern-bert",
        names={
            "embeddings.tok_embeddings": "token_embd",
            "embeddings.norm": "token_embd_norm",
            "final_norm": "output_norm",
            "attn_norm": "attn_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.Wo": "attn_output",
            "mlp_norm": "ffn_norm",
            "mlp.Wi": "ffn_up",
            "mlp.Wo": "ffn_down",
        },
        tensors=tensors,
        metadata=metadata,
    ),
)
