"""Encoders against transformers, packed; and MiniLM against sentence-transformers."""

from __future__ import annotations

import cases
import numpy as np
import real_models
from cases import ENCODERS, close, each

import boostr
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.load import load_module
from boostr.engine.sentence import Sentence
from boostr.engine.text_model import Parts


@each(ENCODERS)
def test_packed_hidden_states_equal_transformers(case, backend, tmp_path):
    module = load_module(cases.checkpoint(case, tmp_path), backend=backend)
    model = EmbeddingModel(Parts(module, None, backend, "tiny"), Sentence())
    close(
        cases.kept(model.hidden(cases.sequences(case))), cases.expected(case, "hidden_states")[-1]
    )


def test_minilm_equals_sentence_transformers():
    folder = real_models.minilm()
    with np.load(real_models.DATA / "minilm" / "golden.npz") as golden:
        texts, expected = golden["texts"].tolist(), golden["embeddings"]
    vectors = boostr.load(folder, backend="numpy").embed(texts)
    cosine = (vectors * expected).sum(1)
    assert (1 - cosine).max() <= 1e-5
