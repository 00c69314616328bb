"""RoBERTa: positions behind the id of the padding, which takes none."""

from families import Case, Family, bert

# the second token of the third sequence is 18
SIZES = bert.SIZES | {"max_position_embeddings": 60, "pad_token_id": 18, "type_vocab_size": 1}
FAMILY = Family(
    config="RobertaConfig",
    model="RobertaModel",
    cases={
        "pad": Case(SIZES | {"layer_norm_eps": 1e-5}),
        "mlm": Case(SIZES | {"pad_token_id": 0, "hidden_act": "relu"}, model="RobertaForMaskedLM"),
    },
)
