"""Files that `boostr convert` writes, run by llama.cpp. By hand, with gcc:

    python tests/models/check_llama_cpp.py LLAMA_CPP [FAMILY ...]

LLAMA_CPP is its source, with libllama.so in build/bin. Every tiny checkpoint of the families that
are written as GGUF gets a tokenizer of bytes and is written in float32; of 40 tokens logits, or
hidden states of encoders, must be those of boostr, as must the logits of whole classifiers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

import cases  # noqa: E402
import seeded  # noqa: E402
from head_folders import WHOLE, whole  # noqa: E402
from tiny_model import SPECIAL, save_tokenizer  # noqa: E402

import boostr  # noqa: E402
from boostr.errors import ModelFileError  # noqa: E402
from boostr.io.safetensors import SINGLE, save  # noqa: E402

LIMIT = 2e-3  # of the largest: float32, but exp and GELU of llama.cpp are tables
VOCAB = 256 + len(SPECIAL)
IDS = seeded.token_ids(5, 40, 250).tolist()


def build(source: Path, folder: Path) -> Path:
    """check_llama_cpp.c, compiled against the library."""
    program, libraries = folder / "states", source / "build" / "bin"
    subprocess.run(
        ["gcc", "-O1", f"-I{source}/include", f"-I{source}/ggml/include",
         str(HERE / "check_llama_cpp.c"), "-o", str(program), f"-L{libraries}", "-lllama",
         "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"], check=True,
    )  # fmt: skip
    return program


def theirs(program: Path, file: Path, kind: str, ids: list[int]) -> np.ndarray:
    done = subprocess.run([program, file, kind, *map(str, ids)], capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-300:] or f"exit status {done.returncode}")
    return np.frombuffer(done.stdout, np.float32)


def folder_of(case: cases.Tiny, folder: Path) -> Path:
    """The checkpoint with a vocabulary of bytes, and with what llama.cpp has as constants."""
    small, gguf = case.vocab_size, case.data.gguf
    said = {**case.config, **(gguf.constants(case.config) if gguf else {}), "vocab_size": VOCAB}
    shapes = {n: [VOCAB if d == small else d for d in s] for n, s in case.shapes.items()}
    return written(folder, said, seeded.weights(case.seed, shapes, case.data.weights))


def written(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save(folder / SINGLE, tensors)
    save_tokenizer(folder, None)
    return folder


def apart(ours: np.ndarray, other: np.ndarray) -> float:
    """Of the largest."""
    return float(np.abs(ours - other.reshape(ours.shape)).max() / np.abs(ours).max())


def of_case(program: Path, case: cases.Tiny, scratch: Path) -> float:
    file = scratch / "m.gguf"
    boostr.convert(folder_of(case, scratch / "f"), file, kind="F32")
    model: Any = boostr.load(file, backend="numpy")
    if case.generates:
        return apart(model.logits(IDS), theirs(program, file, "logits", IDS))
    return apart(model.hidden([IDS])[0], theirs(program, file, "states", IDS))


def of_head(program: Path, name: str, scratch: Path) -> float:
    config, tensors = whole(name, "Sequence")
    file = scratch / "m.gguf"
    folder = written(scratch / "f", {**config, "vocab_size": 20}, tensors)
    (folder / "tokenizer.json").unlink()
    boostr.convert(folder, file)
    model: Any = boostr.load(file, backend="numpy")
    ids = WHOLE[name]["ids"][1]
    return apart(model._logits([ids], None)[0], theirs(program, file, "rank", ids))


def main(source: Path, families: list[str]) -> None:
    failed = 0
    with tempfile.TemporaryDirectory() as made:
        program = build(source, Path(made))
        known = [c for c in cases.CASES if c.data.gguf and (not families or c.family in families)]
        jobs = [(case.name, of_case, case) for case in known]
        jobs += [(n + " with a head", of_head, n) for n in WHOLE if not families or n in families]
        for name, check, what in jobs:
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    found = check(program, what, Path(scratch))
                    word, said = ("ok  " if found <= LIMIT else "FAIL"), f"{found:.1e}"
                except ModelFileError as error:
                    word, said = "left", str(error).rpartition("config.json: ")[2][:90]
                except Exception as error:
                    word, said = "FAIL", f"{type(error).__name__}: {error}"
                print(f"{word} {name}: {said}", flush=True)
                failed += word == "FAIL"
    if failed:
        raise SystemExit(f"{failed} differ")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
