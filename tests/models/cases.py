"""The tiny checkpoints: families/NAME.py says which, data/NAME.json and .npz (of make_tiny.py) what
transformers makes of them; their weights are drawn from a seed.

Every test of this folder that has a parameter `case` holds for each of CASES.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
from families import Arrays, Case, Config, Family, all_families

from boostr import dtypes
from boostr.io.safetensors import INDEX, SINGLE, save

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint.

    Attributes:
        name: "family/case".   first: whether it is the family's first.
        seed: of weights and prompt.   config: its config.json.   shapes: of its weights, by name.
    """

    name: str
    first: bool
    data: Family
    spec: Case
    seed: int
    config: Config
    shapes: dict[str, list[int]]

    @property
    def family(self) -> str:
        return self.name.split("/")[0]

    @property
    def generates(self) -> bool:
        return self.data.generates(self.spec)

    @property
    def vocab_size(self) -> int:
        return self.config.get("text_config", self.config)["vocab_size"]


def _read() -> list[Tiny]:
    found = []
    for name, family in all_families().items():
        records = json.loads((DATA / f"{name}.json").read_text())["cases"]
        for i, (case, spec) in enumerate(family.cases.items()):
            found.append(Tiny(f"{name}/{case}", i == 0, family, spec, **records[case]))
    return found


CASES = _read()
DECODERS = [case for case in CASES if case.generates]
ENCODERS = [case for case in CASES if not case.generates]
PLAIN = [case for case in DECODERS if not case.spec.cache_sensitive]


def named(name: str) -> Tiny:
    """The case called "family/case"."""
    return next(case for case in CASES if case.name == name)


def each(rows: Iterable[Tiny]) -> pytest.MarkDecorator:
    """The parameter `case` of a test."""
    return pytest.mark.parametrize("case", list(rows), ids=lambda case: case.name)


def weights(case: Tiny) -> Arrays:
    """The tensors of the checkpoint, of its dtype."""
    drawn = seeded.weights(case.seed, case.shapes, case.data.weights)
    return {name: a.astype(dtypes.parse(case.spec.dtype)) for name, a in drawn.items()}


def checkpoint(case: Tiny, folder: Path) -> Path:
    """Write the case into `folder` (a tmp_path) as one HF checkpoint folder; returns it."""
    (folder / "config.json").write_text(json.dumps(case.config))
    tensors, shards = weights(case), case.spec.shards
    if shards == 1:
        save(folder / SINGLE, tensors)
        return folder
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    placed = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        save(folder / file, {n: a for n, a in tensors.items() if placed[n] == file})
    size = sum(a.nbytes for a in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def sequences(case: Tiny) -> list[np.ndarray]:
    """Token ids int32, three sequences of seeded.LENGTHS."""
    return seeded.sequences(case.vocab_size)


def prompt(case: Tiny) -> list[int]:
    """What greedy decoding starts from."""
    return seeded.token_ids(case.seed, seeded.PROMPT, case.vocab_size).tolist()


def expected(case: Tiny, field: str) -> np.ndarray:
    """What transformers computes, see make_tiny.py."""
    name = case.name.split("/")[1]
    with np.load(DATA / f"{case.family}.npz") as arrays:
        return arrays[f"{name}.{field}"]


def hidden_states(case: Tiny) -> list[np.ndarray]:
    """What `expected` has after the embedding and after each layer."""
    name = case.name.split("/")[1]
    with np.load(DATA / f"{case.family}.npz") as arrays:
        narrower = f"{name}.last_hidden_state"
        last = [arrays[narrower]] if narrower in arrays else []
        return [*arrays[f"{name}.hidden_states"], *last]


def kept(outputs: Sequence[Any]) -> np.ndarray:
    """Of one output [T, ...] for each sequence, the rows that `expected` has."""
    return np.concatenate([np.asarray(output) for output in outputs])[list(seeded.ROWS)]


def close(actual: np.ndarray, wanted: np.ndarray, rtol: float = 1e-4) -> None:
    """Within `rtol` of the largest."""
    error = np.abs(actual - wanted).max() / np.abs(wanted).max()
    assert error <= rtol, f"relative error {error:.2e} > {rtol}"
