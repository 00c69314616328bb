"""The tiny checkpoints of tests/models/data (made by make_tiny.py, which describes them)."""

import json
import shutil
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "cases.json").read_text())


def cases(family=None):
    """Rows of cases.json: name, family, weights, expected, cache_sensitive.

    cache_sensitive: the rope tables depend on the length so far (dynamic, longrope). Decoding with
    a cache, whose keys were rotated when the sequence was shorter, then differs from one long
    prefill: greedy_ids from greedy_ids_no_cache.
    """
    return [case for case in CASES if family in (None, case["family"])]


def checkpoint(case, folder):
    """Copy the case into `folder` (a tmp_path) as one HF checkpoint folder; returns it."""
    for path in (DATA / case["weights"]).glob("*"):
        if path.name.startswith("model") or path.name == "generation_config.json":
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(DATA / case["name"] / "config.json", folder / "config.json")
    return folder


def expected(case):
    """What transformers computes: name -> array, see make_tiny.py."""
    with np.load(DATA / case["expected"] / "expected.npz") as arrays:
        return dict(arrays)


def segments(arrays, field):
    """`field` [T, ...] of expected() cut into one array a sequence."""
    return np.split(arrays[field], arrays["cu_seqlens"][1:-1])
