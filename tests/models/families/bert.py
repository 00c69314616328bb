"""BERT: as a model alone, and under a head."""

from families import Case, Family

SIZES = {
    "vocab_size": 199, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 50, "max_position_embeddings": 40, "type_vocab_size": 2,
}  # fmt: skip
FAMILY = Family(
    config="BertConfig",
    model="BertModel",
    cases={"pooler": Case(SIZES), "mlm": Case(SIZES, model="BertForMaskedLM")},
)
