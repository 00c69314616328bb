"""DistilBERT: learned positions, and sinusoids, which are weights too."""

from families import Case, Family

SIZES = {
    "vocab_size": 199, "dim": 36, "n_layers": 2, "n_heads": 4, "hidden_dim": 50,
    "max_position_embeddings": 40,
}  # fmt: skip
ODD = {"dim": 30, "n_heads": 3, "activation": "relu", "sinusoidal_pos_embds": True}
FAMILY = Family(
    config="DistilBertConfig",
    model="DistilBertModel",
    cases={"learned": Case(SIZES), "mlm": Case(SIZES | ODD, model="DistilBertForMaskedLM")},
)
