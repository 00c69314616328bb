"""EuroBERT: fewer heads of keys, biases."""

from families import SMALL, Case, Family, rope

SIZES = SMALL | {"pad_token_id": 0}
FAMILY = Family(
    config="EuroBertConfig",
    model="EuroBertModel",
    cases={
        "small": Case(SIZES | rope()),
        "mlm": Case(
            SIZES | {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
            model="EuroBertForMaskedLM",
        ),
    },
)
