"""Classifiers of texts and tokens against transformers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_folders import DATA, golden, rewritten

import boostr
from boostr.engine.classifier import ClassificationModel, TokenClassificationModel
from boostr.errors import ModelFileError, OptionError, TokenizerError
from boostr.io.safetensors import open_safetensors, save


@pytest.mark.parametrize("problem", ["softmax", "multi_label_classification", "regression"])
def test_scores_equal_the_pipeline(problem: str, backend, tmp_path: Path) -> None:
    folder, truth = DATA / "bert_labels", golden("bert_labels")
    if problem != "softmax":
        folder = rewritten("bert_labels", tmp_path / "m", problem_type=problem)
    model = boostr.load(folder, backend=backend)
    assert isinstance(model, ClassificationModel)
    pairs = [(first, second) for first, second in truth["pairs"]]
    for texts, key in ((truth["texts"], problem), (pairs, f"{problem} of pairs")):
        given = model.classify(texts)
        for scores, rows in zip(given, truth[key], strict=True):
            assert list(scores) == [row["label"] for row in rows]  # the likeliest first
            wanted = [row["score"] for row in rows]
            np.testing.assert_allclose([*scores.values()], wanted, rtol=2e-4, atol=1e-5)


def test_a_decoder_that_classifies(backend) -> None:
    """By its last token, pads at the end of a text passed over as transformers does."""
    truth, model = golden("llama_labels"), boostr.load(DATA / "llama_labels", backend=backend)
    assert isinstance(model, ClassificationModel)
    np.testing.assert_allclose(model.logits(truth["texts"]), truth["logits"], rtol=2e-4, atol=2e-5)
    pair, padded = ("the cat", "is good"), ("the cat", "is good<|endoftext|>")
    np.testing.assert_array_equal(model.logits([pair]), model.logits([padded]))
    with pytest.raises(OptionError, match="was loaded without its head"):
        model.module.head(model.module.hidden(model.runner.packed([[1]])))


def test_tokens_and_spans_equal_the_pipeline(backend) -> None:
    truth, model = golden("bert_tokens"), boostr.load(DATA / "bert_tokens", backend=backend)
    assert isinstance(model, TokenClassificationModel)
    assert len({row["entity"] for rows in truth["none"] for row in rows}) > 3  # or it proves little
    for join, key, label in ((False, "none", "entity"), (True, "simple", "entity_group")):
        given = model.classify(truth["texts"], join=join)
        for text, spans, rows in zip(truth["texts"], given, truth[key], strict=True):
            where = [(row[label], row["start"], row["end"]) for row in rows]
            assert [(s.label, s.start, s.end) for s in spans] == where
            assert all(s.text == text[s.start : s.end] for s in spans)
            np.testing.assert_allclose([s.score for s in spans], [r["score"] for r in rows], 1e-4)


def test_many_texts_in_several_passes(monkeypatch) -> None:
    """Each gives what it gives alone, in the order in which they came."""
    model: Any = boostr.load(DATA / "bert_labels", backend="numpy")
    texts = golden("bert_labels")["texts"] * 3
    whole = model.logits(texts)
    monkeypatch.setattr(model.backend, "text_tokens", 9)
    np.testing.assert_allclose(model.logits(texts), whole, rtol=1e-5, atol=1e-6)
    assert model.classify([]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "different names"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must map 0, 1 ... to different names"),
        ({"id2label": {"0": "a", "1": "b"}}, r"output.weight .*expected \[2, 16\], got \[3, 16\]"),
        ({"id2label": None}, r"expected \[2, 16\]"), ({"problem_type": "ranking"}, "problem_type"),
        ({"architectures": "BertForSequenceClassification"}, "architectures must be a list"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        boostr.load(rewritten("bert_labels", tmp_path / "m", **changes), backend="numpy")


def test_names_of_labels_that_are_not_given(tmp_path: Path) -> None:
    folder = rewritten("bert_labels", tmp_path / "m", id2label=None, num_labels=3)
    model: Any = boostr.load(folder, backend="numpy")
    assert model.labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_head_that_is_missing_is_named_as_in_the_checkpoint(tmp_path: Path) -> None:
    folder = rewritten(
        "bert_tokens", tmp_path / "m", architectures=["BertForSequenceClassification"]
    )
    with pytest.raises(ModelFileError, match=r"in the checkpoint: bert.pooler.dense.weight"):
        boostr.load(folder, backend="numpy")


@pytest.mark.parametrize(
    ("texts", "message"),
    [("one text", "expected a list"), ([3], r"texts\[0\] must be a str or a pair"),
     ([("a", "b", "c")], "a str or a pair"), (["a", ("b", 3)], r"texts\[1\]")],
)  # fmt: skip
def test_texts_that_are_refused(texts: Any, message: str) -> None:
    model: Any = boostr.load(DATA / "bert_labels", backend="numpy")
    with pytest.raises(OptionError, match=message):
        model.classify(texts)


def test_text_that_is_no_utf8_is_named() -> None:
    model: Any = boostr.load(DATA / "bert_labels", backend="numpy")
    with pytest.raises(TokenizerError, match="not valid UTF-8: character 1"):
        model.classify(["fine", ("a", "b\ud800")])


def test_token_types_that_the_model_has_not(tmp_path: Path) -> None:
    folder = rewritten("bert_labels", tmp_path / "m", type_vocab_size=1)
    with open_safetensors(folder) as files:
        tensors = {name: np.array(files.tensor(name)) for name in files.names}
    types = "bert.embeddings.token_type_embeddings.weight"
    save(folder / "model.safetensors", tensors | {types: tensors[types][:1]})
    model: Any = boostr.load(folder, backend="numpy")
    assert model.classify(["a cat"])
    with pytest.raises(TokenizerError, match="gives token type 1, the model has 1"):
        model.classify([("a cat", "a dog")])
