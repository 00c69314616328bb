"""XLM-RoBERTa, which is RoBERTa with another vocabulary."""

from families import Case, Family, roberta

FAMILY = Family(
    config="XLMRobertaConfig",
    model="XLMRobertaModel",
    cases={
        "odd": Case(
            roberta.SIZES | {"pad_token_id": 1, "hidden_size": 35, "num_attention_heads": 5}
        ),
        "pooler": Case(roberta.SIZES | {"type_vocab_size": 2}),
    },
)
