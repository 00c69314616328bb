"""EuroBERT: fewer heads of keys, biases."""

from families import GGUF, SMALL, Case, Family, rope

SIZES = SMALL | {"pad_token_id": 0}


def tensors(tensors, config):
    kept = {name.removeprefix("model."): a for name, a in tensors.items()}
    return {name: array for name, array in kept.items() if not name.startswith("lm_head.")}


FAMILY = Family(
    config="EuroBertConfig",
    model="EuroBertModel",
    gguf=GGUF(
        "eurobert",
        names={"embed_tokens": "token_embd", "norm": "output_norm"},
        tensors=tensors,
        metadata=lambda config: {"attention.causal": False},
    ),
    cases={
        "small": Case(SIZES | rope()),
        "mlm": Case(
            SIZES | {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
            model="EuroBertForMaskedLM",
        ),
    },
)
