"""The folders of tests/models/data/heads (made by make_golden_heads.py), with their weights; and
copies of them."""

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import seeded

from boostr.io.safetensors import SINGLE, save


def _with_weights() -> Path:
    """All of them in a temporary folder."""
    made = Path(tempfile.mkdtemp(prefix="heads-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    shutil.copytree(Path(__file__).parent / "data" / "heads", made, dirs_exist_ok=True)
    for file in made.glob("*/golden.json"):
        weights = json.loads(file.read_text())["weights"]
        save(file.with_name(SINGLE), seeded.weights(weights["seed"], weights["shapes"], {}))
    return made


DATA = _with_weights()
WHOLE: dict[str, Any] = json.loads((DATA / "whole.json").read_text())


def whole(name: str, task: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A classifier of WHOLE, "Sequence" or "Token": its config.json and its tensors."""
    row, own = WHOLE[name], WHOLE[name][task]
    shapes = {n: s for n, s in row["shapes"].items() if n not in own["lacks"]} | own["has"]
    config = row["config"] | {"architectures": [own["architecture"]]}
    return config, seeded.weights(1, shapes, {})


def golden(name: str) -> dict[str, Any]:
    """What transformers or sentence-transformers say of a folder."""
    return json.loads((DATA / name / "golden.json").read_text())


def rewritten(name: str, to: Path, file: str = "config.json", **changes: Any) -> Path:
    """A copy of a folder with another of its JSON files; None takes a key away."""
    folder = shutil.copytree(DATA / name, to)
    kept = json.loads((folder / file).read_text()) | changes
    kept = {key: value for key, value in kept.items() if value is not None}
    (folder / file).write_text(json.dumps(kept))
    return folder
