"""MPNet: biases by distance, of more heads than one, and rows of buckets that nothing reads."""

from families import Case, Family, bert, without

SIZES = without(bert.SIZES, "type_vocab_size") | {"max_position_embeddings": 60}
FAMILY = Family(
    config="MPNetConfig",
    model="MPNetModel",
    cases={
        "pooler": Case(SIZES),
        "mlm": Case(
            SIZES
            | {"relative_attention_num_buckets": 33}
            | {"pad_token_id": 0, "num_attention_heads": 3, "hidden_act": "relu"},
            model="MPNetForMaskedLM",
        ),
    },
)
