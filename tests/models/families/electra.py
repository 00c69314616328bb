"""ELECTRA: tables narrower than the layers, and as wide."""

from families import Case, Family, bert

FAMILY = Family(
    config="ElectraConfig",
    model="ElectraModel",
    cases={
        "narrow": Case(bert.SIZES | {"embedding_size": 14}),
        "wide": Case(
            bert.SIZES | {"embedding_size": 36, "hidden_act": "gelu_new"},
            model="ElectraForMaskedLM",
        ),
    },
)
