"""Classifiers are saved with their heads."""

from __future__ import annotations

import json

import cases
import numpy as np
import pytest
from cases import named
from head_folders import DATA, WHOLE, whole
from test_save import arrays

import boostr
from boostr.engine.load import load_module
from boostr.errors import ModelFileError
from boostr.io.safetensors import SINGLE, save
from boostr.models.save import save_folder


@pytest.mark.parametrize("name", [*WHOLE, "bert_labels", "bert_tokens", "llama_labels"])
def test_a_classifier_keeps_its_head(name, tmp_path):
    """It was dropped. The tensors are those that transformers wrote, but for unused poolers."""
    folder = DATA / name
    if name in WHOLE:
        folder = tmp_path
        config, tensors = whole(name, "Sequence")
        (folder / "config.json").write_text(json.dumps(config))
        save(folder / SINGLE, tensors)
    model = boostr.load(folder, backend="numpy")
    save_folder(model.module, tmp_path / "saved", head=model.classifier)
    want, got = arrays(folder), arrays(tmp_path / "saved")
    assert {n for n in want.keys() ^ got.keys() if "pooler" not in n} == set()
    for key, array in got.items():
        assert np.array_equal(array, want[key]), key
    again = boostr.load(tmp_path / "saved", backend="numpy")
    pairs = zip(model.classifier.places(), again.classifier.places(), strict=True)
    for (name, owner, attribute), (_, other, _) in pairs:
        ours, theirs = getattr(owner, attribute), getattr(other, attribute)
        assert np.array_equal(ours.numpy(), theirs.numpy()), name


def test_a_classifier_without_its_head_is_refused(tmp_path):
    model = boostr.load(DATA / "bert_labels", backend="numpy")
    with pytest.raises(ModelFileError, match=r"SequenceClassification'\] .* with no classifier"):
        save_folder(model.module, tmp_path / "a")
    plain = load_module(cases.checkpoint(named("bert/pooler"), tmp_path), backend="numpy")
    with pytest.raises(ModelFileError, match="cannot be saved with a classifier"):
        save_folder(plain, tmp_path / "b", head=model.classifier)
