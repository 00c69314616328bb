"""Every head of boostr.models.heads against transformers, on hidden states alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
from head_folders import DATA

import boostr
from boostr import Tensor
from boostr.errors import ModelFileError
from boostr.io.safetensors import save
from boostr.models import FAMILIES
from boostr.models.config import RawConfig
from boostr.models.heads import Classifier, classifier_spec
from boostr.models.lazy import Held
from boostr.models.weights import CheckpointWeights, load_parameters
from boostr.nn import Batch

with np.load(DATA / "heads.npz") as arrays:
    GOLDEN = dict(arrays)
WHOLE = json.loads((DATA / "whole.json").read_text())
CASES = sorted({name.rpartition("/")[0] for name in GOLDEN})
CONFIGS = {
    "eurobert/bos": {"classifier_pooling": "bos"},
    "modernbert": {"classifier_pooling": "cls"},
    "modernbert/mean": {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True,
                        "norm_eps": 1e-3},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, backend) -> None:
    found = {k.rpartition("/")[2]: v for k, v in GOLDEN.items() if k.rpartition("/")[0] == case}
    hidden, logits = found.pop("hidden"), found.pop("logits")
    name, _, architecture = case.rpartition("/")
    raw = CONFIGS.get(name, {}) | {
        "architectures": [architecture],
        "model_type": name.split("/")[0],
    }
    spec = classifier_spec(RawConfig(raw, "config.json"))
    assert spec is not None and all(spec.owns(tensor) for tensor in found)
    classifier = Classifier(hidden.shape[1], logits.shape[1], spec)
    stored = {name: Held(name, value) for name, value in found.items()}
    load_parameters(classifier, CheckpointWeights(stored, "m", spec.load_plan()), backend)
    places, ends = np.tile(np.arange(5, dtype=np.int32), 2), np.array([0, 5, 10], np.int32)
    ids, positions, cu_seqlens = (Tensor(x, backend=backend) for x in (places * 0, places, ends))
    batch = Batch(ids, positions, cu_seqlens)
    given = classifier(Tensor(hidden, backend=backend), batch).numpy()
    np.testing.assert_allclose(given, logits, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_classifiers_equal_transformers(name: str, backend, tmp_path: Path) -> None:
    row = WHOLE[name]
    if row["config"]["model_type"] not in FAMILIES:
        pytest.skip(f"no family yet: {row['config']['model_type']}")
    (tmp_path / "config.json").write_text(json.dumps(row["config"]))
    save(tmp_path / "model.safetensors", seeded.weights(1, row["shapes"], {}))
    model: Any = boostr.load(tmp_path, backend=backend)
    given = model._logits(row["ids"], row["types"])
    np.testing.assert_allclose(given, row["logits"], rtol=1e-4, atol=5e-5)


def test_which_head() -> None:
    def spec(architecture, **raw):
        return classifier_spec(RawConfig({"architectures": architecture} | raw, "config.json"))

    assert spec(["BertModel"], model_type="bert") is None
    assert spec(None, model_type="bert") is None and spec([], model_type="bert") is None
    pooling = {"classifier_pooling": "max", "model_type": "modernbert"}
    with pytest.raises(ModelFileError, match="classifier_pooling must be one of"):
        spec(["ModernBertForSequenceClassification"], **pooling)
    with pytest.raises(ModelFileError, match="unknown architecture, model_type 'deberta'"):
        spec(["DebertaForSequenceClassification"], model_type="deberta")
