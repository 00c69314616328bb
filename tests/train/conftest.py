"""Small models to be trained."""

import numpy as np
import pytest

import boostr

CONFIG = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 50,
    "tie_word_embeddings": True, "initializer_range": 0.2,
}  # fmt: skip
BERT = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "vocab_size": 50, "type_vocab_size": 2, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture
def make():
    """make(backend, **changes of the config) -> a new llama."""
    return lambda backend="numpy", **changes: boostr.create(
        "llama", {**CONFIG, **changes}, 3, backend=backend
    )


@pytest.fixture
def sequences(rng):
    """Token ids of several lengths, one token among them."""
    return [rng.integers(0, 50, n).tolist() for n in (9, 1, 4, 17)]


def values(model):
    return {name: p.numpy().astype(np.float64) for name, p in model.named_parameters()}


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    """Where tokenized data lies: of one test, beside kernels that all share."""
    monkeypatch.setattr("boostr.train.data.cache_folder", lambda: tmp_path / "datasets")
    return tmp_path / "datasets"
