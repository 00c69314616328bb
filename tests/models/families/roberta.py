"""RoBERTa: positions behind the id of the padding, which takes none."""

from families import GGUF, Case, Family, bert

# the second token of the third sequence is 18
SIZES = bert.SIZES | {"max_position_embeddings": 60, "pad_token_id": 18, "type_vocab_size": 1}


def tensors(tensors, config):
    """Of the positions those that texts take."""
    made = bert.alone(tensors, config)
    name = "embeddings.position_embeddings.weight"
    return made | {name: made[name][config["pad_token_id"] + 1 :]}


def metadata(config):
    positions = config["max_position_embeddings"] - config["pad_token_id"] - 1
    return bert.metadata(config) | {"context_length": positions}


FAMILY = Family(
    config="RobertaConfig",
    model="RobertaModel",
    gguf=GGUF("bert", names=bert.GGUF_NAMES, tensors=tensors, metadata=metadata),
    cases={
        "pad": Case(SIZES | {"layer_norm_eps": 1e-5}),
        "mlm": Case(SIZES | {"pad_token_id": 0, "hidden_act": "relu"}, model="RobertaForMaskedLM"),
    },
)
