"""BERT against transformers, packed; and MiniLM against sentence-transformers."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import real_models

import boostr
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.load import load_module
from boostr.engine.sentence import Sentence

BERTS = [c for c in cases.CASES if c["family"] == "bert"]


@pytest.mark.parametrize("case", BERTS, ids=[c["name"] for c in BERTS])
def test_packed_hidden_states_equal_transformers(case, backend, tmp_path):
    module, truth = (
        load_module(cases.checkpoint(case, tmp_path), backend=backend),
        cases.expected(case),
    )
    model = EmbeddingModel(module, None, backend, "tiny", Sentence())  # type: ignore[arg-type]
    packed = np.concatenate(model.hidden(cases.segments(truth, "input_ids")))
    expected = truth["last_hidden_state"]
    assert np.abs(packed - expected).max() <= 1e-4 * np.abs(expected).max()


def test_minilm_equals_sentence_transformers():
    folder = real_models.minilm()
    with np.load(real_models.DATA / "minilm" / "golden.npz") as golden:
        texts, expected = golden["texts"].tolist(), golden["embeddings"]
    vectors = boostr.load(folder, backend="numpy").embed(texts)
    cosine = (vectors * expected).sum(1)
    assert (1 - cosine).max() <= 1e-5
