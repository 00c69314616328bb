"""Encoders from GGUF, written by the converter's rules and by `convert`, against transformers."""

from __future__ import annotations

import json

import cases
import gguf_files
import numpy as np
import pytest
from cases import close, each, named

import boostr
from boostr import backends
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.errors import ModelFileError
from boostr.io.safetensors import SINGLE, save

NUMPY = backends.get("numpy")
# what only the folder can say: an activation, windows of other layers than every third, that an id
# in a text is padding
UNSAID = ("nomic_bert/mlm", "modernbert/mlm", "roberta/pad", "roberta/mlm", "distilbert/mlm")
CASES = [c for c in cases.ENCODERS if c.data.gguf and c.spec.in_gguf and c.name not in UNSAID]


def assert_hidden(path, case, backend=NUMPY):
    runner = Runner(load_module(path, backend=backend), backend)
    states = [runner.hidden_states(ids)[-1].numpy() for ids in cases.sequences(case)]
    close(cases.kept(states), cases.expected(case, "hidden_states")[-1])


@each(CASES)
def test_hidden_states_equal_transformers(case, plain_backend, tmp_path):
    folder = cases.checkpoint(case, tmp_path)
    assert_hidden(gguf_files.convert(folder, tmp_path / "m.gguf"), case, plain_backend)


@each(CASES)
def test_convert_and_back(case, tmp_path):
    (tmp_path / "f").mkdir()
    made = boostr.convert(cases.checkpoint(case, tmp_path / "f"), tmp_path / "m.gguf")
    assert_hidden(made, case)
    assert_hidden(boostr.convert(made, tmp_path / "b"), case)


def test_positions_of_robertas_kind(tmp_path):
    """The file has the rows that texts take: as the folder, but for ids of padding in a text."""
    case = named("roberta/pad")
    folder = cases.checkpoint(case, tmp_path)
    made = Runner(load_module(gguf_files.convert(folder, tmp_path / "m.gguf")), NUMPY)
    want = Runner(load_module(folder), NUMPY)
    ids = [n for n in range(3, 50) if n != case.config["pad_token_id"]][:40]
    close(made.hidden_states(ids)[-1].numpy(), want.hidden_states(ids)[-1].numpy())
    assert made.module.config.max_position_embeddings == 41


@pytest.mark.parametrize(
    ("metadata", "poolings"),
    [({}, ("mean",)), ({"pooling_type": 1}, ("mean",)), ({"pooling_type": 2}, ("cls",)),
     ({"pooling_type": 3}, ("lasttoken",))],
)  # fmt: skip
def test_pooling(metadata, poolings, tmp_path):
    folder = cases.checkpoint(named("bert/pooler"), tmp_path)
    made = boostr.load(gguf_files.convert(folder, tmp_path / "m.gguf", metadata=metadata))
    assert made.sentence.poolings == poolings
    vector = made.sentence.steps[0](np.array([[3.0, 4.0]]))
    assert vector.tolist() == [[0.6, 0.8]]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"pooling_type": 5}, "bert.pooling_type must be one of .*, got 5"),
     ({"attention.causal": True}, "attention.causal true, of earlier tokens alone")],
)  # fmt: skip
def test_what_is_refused(metadata, message, tmp_path):
    folder = cases.checkpoint(named("bert/pooler"), tmp_path)
    with pytest.raises(ModelFileError, match=message):
        boostr.load(gguf_files.convert(folder, tmp_path / "m.gguf", metadata=metadata))


def sentence_folder(folder, modes, *, dense=False):
    """A sentence-transformers folder around a tiny BERT."""
    cases.checkpoint(named("bert/pooler"), folder)
    rows = [("", "Transformer"), ("1_Pooling", "Pooling")]
    rows += [("2_LayerNorm", "LayerNorm")] if dense else []
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{t}"}
               for i, (path, t) in enumerate(rows)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {f"pooling_mode_{mode}": True for mode in modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_convert_says_the_pooling(tmp_path):
    (tmp_path / "f").mkdir()
    folder = sentence_folder(tmp_path / "f", ["cls_token"])
    assert boostr.load(boostr.convert(folder, tmp_path / "m.gguf")).sentence.poolings == ("cls",)


def test_poolings_that_gguf_has_not_are_refused(tmp_path):
    (tmp_path / "f").mkdir()
    folder = sentence_folder(tmp_path / "f", ["cls_token", "mean_tokens"])
    with pytest.raises(ModelFileError, match=r"one pooling .* got cls \+ mean"):
        boostr.convert(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("name", ["nomic_bert/mlm", "modernbert/mlm"])
def test_what_the_file_cannot_say_is_not_written(name, tmp_path):
    (tmp_path / "f").mkdir()
    folder = cases.checkpoint(named(name), tmp_path / "f")
    with pytest.raises(ModelFileError, match="layer 0"):
        boostr.convert(folder, tmp_path / "m.gguf")


def test_a_classifier_is_not_written(tmp_path):
    """A file with its head was written, which did not load."""
    (tmp_path / "f").mkdir()
    folder = cases.checkpoint(named("bert/mlm"), tmp_path / "f")
    head = {"classifier.weight": np.ones((3, 36), np.float32)}
    save(folder / SINGLE, cases.weights(named("bert/mlm")) | head)
    with pytest.raises(ModelFileError, match=r"GGUF has no place for classifier\.weight"):
        boostr.convert(folder, tmp_path / "m.gguf")
