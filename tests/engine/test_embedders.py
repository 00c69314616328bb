"""Embedders other than encoders against sentence-transformers: decoders, and static tables."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_folders import DATA, golden, rewritten

import boostr
from boostr.errors import ModelFileError, OptionError
from boostr.io.safetensors import open_safetensors, save


def test_a_decoder_that_embeds(backend) -> None:
    """Its vectors come from behind the final norm, and no head is asked for; texts end in EOS."""
    truth, model = golden("qwen3_embedding"), boostr.load(DATA / "qwen3_embedding", backend=backend)
    vectors = model.embed(truth["texts"])
    np.testing.assert_allclose(vectors, truth["vectors"], rtol=1e-4, atol=2e-5)
    queries = model.embed(truth["texts"], prompt_name="query")  # type: ignore[union-attr]
    np.testing.assert_allclose(queries, truth["queries"], rtol=1e-4, atol=2e-5)


def test_a_head_in_the_checkpoint_of_an_embedder_is_left_out(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "qwen3_embedding", tmp_path / "m")
    with open_safetensors(folder) as files:
        tensors = {f"model.{name}": np.array(files.tensor(name)) for name in files.names}
    save(folder / "model.safetensors", tensors | {"lm_head.weight": np.zeros((262, 8), "f4")})
    model: Any = boostr.load(folder, backend="numpy")
    truth = golden("qwen3_embedding")
    np.testing.assert_allclose(model.embed(truth["texts"]), truth["vectors"], rtol=1e-4, atol=2e-5)


def test_a_static_table(backend) -> None:
    truth = golden("static_embedding")
    model = boostr.load(DATA / "static_embedding", backend=backend)
    vectors = model.embed(truth["texts"])
    np.testing.assert_allclose(vectors, truth["vectors"], rtol=1e-5, atol=1e-6)
    with pytest.raises(OptionError, match=r"texts\[1\] has no tokens to pool"):
        model.embed(["a", ""])


def static_folder(tensors: dict[str, np.ndarray], to: Path) -> Path:
    folder = shutil.copytree(DATA / "static_embedding", to)
    save(folder / "model.safetensors", tensors)
    return folder


def test_a_static_table_with_a_mapping_and_weights(tmp_path: Path) -> None:
    """model2vec's: tokens share rows, and are weighted before the mean."""
    with open_safetensors(DATA / "static_embedding") as files:
        table = np.array(files.tensor("embedding.weight"))
    mapping = np.arange(len(table))[::-1].copy()
    weights = np.linspace(0.5, 2, len(table))
    smaller = {"embeddings": table[::-1].copy(), "mapping": mapping, "weights": weights}
    rows = table * weights[:, None].astype("f4")
    whole = static_folder({"embedding.weight": rows}, tmp_path / "a")
    model, other = (
        boostr.load(folder, backend="numpy")
        for folder in (static_folder(smaller, tmp_path / "b"), whole)
    )
    texts = golden("static_embedding")["texts"]
    np.testing.assert_allclose(model.embed(texts), other.embed(texts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"table": np.zeros((25, 4), "f4")}, "expected a table of embeddings"),
        (
            {"embeddings": np.zeros((25, 4), "f4"), "mapping": np.full(25, 25)},
            "mapping must",
        ),
        ({"embeddings": np.zeros((25, 4), "f4"), "weights": np.ones(3)}, "weights must be 25"),
        ({"embeddings": np.zeros((25, 4), "f4"), "bias": np.ones(3)}, r"unexpected .*\['bias'\]"),
        ({"embeddings": np.zeros((9, 4), "f4")}, "has 26 tokens"),
    ],
)
def test_static_tables_that_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        boostr.load(static_folder(tensors, tmp_path / "m"), backend="numpy")


def test_vectors_of_chat_messages_are_refused(tmp_path: Path) -> None:
    modality = {"text": {}, "message": {"method": "forward"}}
    folder = rewritten("qwen3_embedding", tmp_path / "m", "sentence_bert_config.json",
                       modality_config=modality)  # fmt: skip
    with pytest.raises(ModelFileError, match="vectors of chat messages"):
        boostr.load(folder, backend="numpy")


@pytest.mark.parametrize("name", ["qwen3_embedding", "bert_labels", "llama_labels", "bert_tokens"])
def test_what_is_quantized_loads_as_what_it_is(name: str, tmp_path: Path) -> None:
    """Layers are packed; heads stay, and are not looked for where there are none."""
    boostr.quantize(DATA / name, tmp_path / "m", "int8", backend="numpy")
    plain: Any = boostr.load(DATA / name, backend="numpy")
    packed: Any = boostr.load(tmp_path / "m", backend="numpy")
    assert type(plain) is type(packed) and packed.weight_bytes < plain.weight_bytes
    texts = golden("static_embedding")["texts"]
    if name == "qwen3_embedding":
        assert (packed.embed(texts) * plain.embed(texts)).sum(1).min() > 0.9
    elif name == "bert_tokens":
        assert [len(s) for s in packed.classify(texts, join=False)] == [7, 4, 6, 1, 38]
    else:
        for tensor, weight in plain.classifier.weights().items():
            other = packed.classifier.weights()[tensor]
            np.testing.assert_array_equal(other.numpy(), weight.numpy())
