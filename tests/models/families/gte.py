"""GTE: with and without token types."""

from families import Case, Family, bert, rope

SIZES = bert.SIZES | {"hidden_size": 32}
FAMILY = Family(
    config="GteConfig",
    model="GteModel",
    cases={
        "types": Case(SIZES),
        "mlm": Case(
            SIZES | {"type_vocab_size": 0, "hidden_act": "silu"} | rope("linear", 77.0, factor=2.0),
            model="GteForMaskedLM",
        ),
    },
)
