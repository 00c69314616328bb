"""Nomic BERT: without a second type, heads of a size of their own; under a head."""

from families import Case, Family, bert, rope

SIZES = bert.SIZES | {"hidden_size": 32}
FAMILY = Family(
    config="NomicBertConfig",
    model="NomicBertModel",
    cases={
        "types": Case(SIZES),
        "mlm": Case(
            SIZES | {"head_dim": 10, "type_vocab_size": 1, "hidden_act": "gelu"} | rope(theta=77.0),
            model="NomicBertForMaskedLM",
        ),
    },
)
