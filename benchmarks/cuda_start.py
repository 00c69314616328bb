"""First token of a cold process on an NVIDIA GPU, a checkpoint of the Llama-3.2-1B shape.

    python benchmarks/cuda_start.py [--model 1B] [--rounds 3]

Writes a random bf16 checkpoint with a byte-level tokenizer into a temporary folder, then starts
processes that load it and generate one token. The first fills the cache of compiled kernels; the
figures are of the next ones, with the checkpoint in the page cache. The clock starts before
Python does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cuda_models
import cuda_timing
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from boostr import dtypes
from boostr.models import family
from boostr.models.config import RawConfig

CHILD = """
import json, sys, time
marks = {"python": time.time()}
import boostr
from boostr.backends import get
backend = get("cupy"); marks["device"] = time.time()
model = boostr.load(sys.argv[1], backend="cupy"); backend.synchronize(); marks["load"] = time.time()
for piece in model.stream(list(range(1, 17)), max_tokens=2, ignore_eos=True):
    marks.setdefault("first token", time.time())
marks["second token"] = time.time()
print(json.dumps(marks))
"""


def write_checkpoint(folder: Path, config: dict) -> None:
    """config.json, tokenizer.json and model.safetensors of random numbers."""
    raw = {
        "model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    made = family("llama", "random")
    module = made(made.read_config(RawConfig(raw, "random")))
    header, end = {}, 0
    for name, owner, attribute in module.places():
        shape = getattr(owner, attribute).shape
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(1 << 22) * 0.02).astype(dtypes.bfloat16).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while end > 0:
            file.write(noise[: min(end, len(noise))])
            end -= len(noise)


def start(folder: Path) -> dict[str, float]:
    """Seconds from the start of a new process to each of its marks."""
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], check=True, capture_output=True, text=True
    )
    marks = json.loads(done.stdout.splitlines()[-1])
    return {name: at - begin for name, at in marks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1B", choices=list(cuda_models.MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, cuda_models.MODELS[options.model])
        first = start(folder)
        later = [start(folder) for _ in range(options.rounds)]
    rows = [(mark, first[mark], statistics.median(run[mark] for run in later)) for mark in first]
    print(cuda_timing.table(["seconds until", "kernels not cached", "kernels cached"], rows))


if __name__ == "__main__":
    main()
