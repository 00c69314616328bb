"""Every head of boostr.models.heads against transformers, on hidden states alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boostr import Tensor
from boostr.errors import ModelFileError
from boostr.models.config import RawConfig
from boostr.models.heads import Classifier, classifier_spec
from boostr.models.lazy import Held
from boostr.models.weights import CheckpointWeights, load_parameters
from boostr.nn import Batch

with np.load(Path(__file__).parent / "data" / "heads" / "heads.npz") as arrays:
    GOLDEN = dict(arrays)
CASES = sorted({name.rpartition("/")[0] for name in GOLDEN})
CONFIGS = {
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
