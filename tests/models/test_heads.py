"""Every head of boostr.models.heads, over its model, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_folders import WHOLE, whole

import boostr
from boostr.errors import ModelFileError
from boostr.io.safetensors import save
from boostr.models import FAMILIES
from boostr.models.config import RawConfig
from boostr.models.heads import classifier_spec


@pytest.mark.parametrize("task", ["Sequence", "Token"])
@pytest.mark.parametrize("name", WHOLE)
def test_logits_equal_transformers(name: str, task: str, backend, tmp_path: Path) -> None:
    """Two texts in one pass."""
    config, tensors = whole(name, task)
    if config["model_type"] not in FAMILIES:
        pytest.skip(f"no family yet: {config['model_type']}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path / "model.safetensors", tensors)
    model: Any = boostr.load(tmp_path, backend=backend)
    batch = model.runner.packed(WHOLE[name]["ids"], WHOLE[name]["types"])
    given = model.classifier(model.module.last_hidden_state(batch), batch).numpy()
    np.testing.assert_allclose(given, WHOLE[name][task]["logits"], rtol=1e-4, atol=5e-5)


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
