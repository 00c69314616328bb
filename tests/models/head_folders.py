"""The folders of tests/models/data/heads (made by make_golden_heads.py), and copies of them."""

import json
import shutil
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "heads"


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
