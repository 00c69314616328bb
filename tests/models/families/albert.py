"""ALBERT: groups of layers that are run several times, and layers within a group."""

from families import Case, Family, bert

FAMILY = Family(
    config="AlbertConfig",
    model="AlbertModel",
    cases={
        "one": Case(bert.SIZES | {"embedding_size": 14}),
        "groups": Case(
            bert.SIZES
            | {"embedding_size": 36, "num_hidden_layers": 5, "num_hidden_groups": 3}
            | {"inner_group_num": 2, "hidden_act": "relu"},
            model="AlbertForMaskedLM",
        ),
    },
)
