"""docs/adding.md tells the truth: its op, family and scheme, added to a copy of the tree, touch as
many files as it says, and work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding.md").read_text()
BLOCK = re.compile(r"```python\n# (\S+?)(?:, after: (.*?))?\n(.*?)```", re.S)


def section(title: str) -> str:
    """The text below a heading that begins so."""
    return re.split(r"^## ", PAGE.split(f"## {title}", 1)[1], maxsplit=1, flags=re.M)[0]


def follow(tree: Path, title: str) -> dict[str, bool]:
    """Do what a section shows. Returns the files it touched, and whether each is new."""
    touched = {}
    for name, after, code in BLOCK.findall(section(title)):
        path = tree / name
        touched[name] = not path.exists()
        if not after:
            path.write_text(code)
            continue
        lines = path.read_text().splitlines(keepends=True)
        place = next(i for i, line in enumerate(lines) if after in line)
        path.write_text("".join([*lines[: place + 1], code, *lines[place + 1 :]]))
    return touched


@pytest.fixture
def tree(tmp_path):
    """A copy of what the sections change and run."""
    for folder in ("boostr", "shaders", "tests"):
        leave_out = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave_out)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def run(tree: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree), "BOOSTR_BACKEND": "numpy"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_op_is_two_files_and_a_row(tree):
    touched = follow(tree, "An op: two files and a row")
    assert sorted(touched.values()) == [False, True, True]
    run(tree, "-m", "pytest", "-q", "tests/ops/test_softsign.py", "-k", "numpy")
    code = "import boostr; print(boostr.ops.softsign(boostr.Tensor([3.0], backend='numpy')))"
    assert "0.75" in run(tree, "-c", code)


def test_a_family_is_two_files_and_a_row(tree):
    """With it all tests of models hold, here on what boostr itself computes of it."""
    touched = follow(tree, "A model: two files and a row")
    assert sorted(touched.values()) == [False, True, True]
    data = Path("tests", "models", "data")
    (tree / data).mkdir()
    for path in [*(ROOT / data).glob("*.json"), *(ROOT / data).glob("*.npz")]:
        shutil.copyfile(path, tree / data / path.name)
    run(tree, "-c", GOLDEN)
    only = "twinkle and not wgpu and not cupy and not composite"
    files = [
        f"tests/models/test_{name}.py" for name in ("decoders", "families", "adapters", "save")
    ]
    done = run(tree, "-m", "pytest", "-q", *files, "-k", only)
    assert int(re.search(r"(\d+) passed", done)[1]) > 20  # type: ignore[index]


GOLDEN = """
import json, sys; sys.path[:0] = ["tests", "tests/models"]
import numpy as np, seeded
from families import SAID, all_families
from pathlib import Path
from boostr.models import family
from boostr.models.config import RawConfig
records, arrays = {}, {}
shape = lambda owner, at: list(getattr(owner, at).shape)
for name, case in all_families()["twinkle"].cases.items():
    raw = {"model_type": "twinkle", **case.config}
    kind = family("twinkle", "")
    module = kind(kind.read_config(RawConfig(raw, "")))
    shapes = {n.replace("o_proj", "dense"): shape(*at) for n, *at in module.places()}
    records[name] = {"seed": 0, "config": raw, "shapes": shapes}
path = Path("tests/models/data/twinkle.json")
sizes = {key: records["tied"]["config"][key] for key in SAID}
path.write_text(json.dumps({"defaults": sizes, "cases": records}))
import cases
from boostr import backends
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
for case in cases.CASES:
    if case.family == "twinkle":
        where, key = Path(case.name), case.name.split("/")[1]
        where.mkdir(parents=True)
        backend = backends.get("numpy")
        runner = Runner(load_module(cases.checkpoint(case, where), backend=backend), backend)
        runs = [runner.hidden_states(ids) for ids in cases.sequences(case)]
        layers = [cases.kept([x.numpy() for x in layer]) for layer in zip(*runs)]
        arrays[f"{key}.hidden_states"] = np.stack(layers)
        logits = [runner.logits(ids).numpy() for ids in cases.sequences(case)]
        arrays[f"{key}.logits"] = cases.kept(logits)
        ids = cases.prompt(case)
        for _ in range(64):
            ids.append(int(runner.logits(ids).numpy()[-1].argmax()))
        arrays[f"{key}.greedy_ids"] = np.array(ids[5:], np.int32)
np.savez(path.with_suffix(".npz"), **arrays)
"""


def test_a_scheme_is_a_row(tree):
    touched = follow(tree, "A scheme of quantized weights: a row")
    assert sorted(touched.values()) == [False]
    assert "equal" in run(tree, "-c", SCHEME)


SCHEME = """
import numpy as np
from boostr import Tensor, ops
from boostr.dispatch import strict
from boostr.quant.pack import pack_codes
from boostr.quant.scheme import SCHEMES, QuantizedTensor
rng = np.random.default_rng(0)
codes = rng.integers(0, 16, (6, 128)).astype(np.uint8)
scales = rng.standard_normal((6, 2)).astype(np.float16)
parts = {**pack_codes(codes, 4), "scales": scales}
parts = {name: Tensor(part, backend="numpy") for name, part in parts.items()}
weight = QuantizedTensor(SCHEMES["int4-f16"], (6, 128), parts)
truth = (codes - 8.0) * np.repeat(scales.astype(np.float64), 64, 1)
x = rng.standard_normal((3, 128)).astype(np.float32)
with strict():  # 4-bit codes have kernels: no code is written for a scheme
    got = ops.linear(Tensor(x, backend="numpy"), weight).numpy()
np.testing.assert_array_equal(ops.dequantize(weight).numpy(), truth.astype(np.float32))
error = np.abs(got - x @ truth.T).max()
print("equal" if error < 1e-3 * np.abs(x @ truth.T).max() else error)
"""
