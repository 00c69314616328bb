"""--adapter and boostr fuse: the adapter's text either way."""

import json
from pathlib import Path

import numpy as np

from boostr.io.peft import Adapter, Factors, write_adapter

DOWN = "model.layers.0.mlp.down_proj"


def adapter(folder: Path) -> str:
    rng = np.random.default_rng(1)
    down, up = rng.standard_normal((2, 44)), rng.standard_normal((32, 2))
    layer = Factors(down.astype("f4"), up.astype("f4"), 1.0)
    write_adapter(folder, Adapter("", {DOWN: layer}), [DOWN])
    return str(folder)


def test_beside_and_merged(boostr, tiny: str, tmp_path: Path) -> None:
    own, out = adapter(tmp_path / "a"), str(tmp_path / "out")
    ask = ("hi", "--max-tokens", "6", "--json", "--backend", "numpy")
    plain = json.loads(boostr("run", "-m", tiny, *ask).stdout)["text"]
    beside = json.loads(boostr("run", "-m", tiny, "--adapter", own, *ask).stdout)["text"]
    said = boostr("fuse", tiny, "--adapter", own, "-o", out)
    assert said.exit_code == 0 and said.stdout.startswith(f"{out}: ")
    merged = json.loads(boostr("run", "-m", out, *ask).stdout)["text"]
    assert merged == beside != plain
    again = boostr("fuse", tiny, "--adapter", own, "-o", out)
    assert again.exit_code == 2 and "exists already" in again.stderr
    none = boostr("run", "-m", tiny, "--adapter", tiny, *ask)
    assert none.exit_code == 1 and "adapter_config.json" in none.stderr
