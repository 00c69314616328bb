"""Training steps on the CPU: boostr beside transformers on torch, float32, in one run.

    python benchmarks/cpu_train.py [--threads 2] [--repetitions 10] [--rounds 2] [--only 5.3M]

TORCH_PYTHON names the interpreter of the peer. Both begin with the same weights and
train on the same 512 tokens, 4 sequences of 128: forward with the loss, backward, AdamW (torch's is
the fused one). They run in turns, each round in a process of its own; a part's figure is its best
of all, as other work on a shared machine only ever slows one down. Losses must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEQUENCES, LENGTH = 4, 128
TARGET, STRETCH = 1.0, 1.3  # times as fast as torch
PARTS = ("forward", "backward", "AdamW")
SHAPES = {
    "5.3M": {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 768,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096},
    "37.8M": {"num_hidden_layers": 8, "hidden_size": 576, "intermediate_size": 1536,
              "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 8192},
}  # fmt: skip
COMMON = {"head_dim": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
          "max_position_embeddings": 2048, "architectures": ["LlamaForCausalLM"]}  # fmt: skip


def tokens(vocabulary: int) -> list[list[int]]:
    """The same on both sides, which have no numpy version in common."""
    state, rows = 1, []
    for _ in range(SEQUENCES):
        rows.append([])
        for _ in range(LENGTH):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            rows[-1].append(state % vocabulary)
    return rows


def measure(forward: Callable[[], Any], step: Callable[[], None], repetitions: int) -> dict:
    """Best milliseconds of each part, and the losses; forward gives what has `backward`."""
    times, losses = [], []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        loss = forward()
        losses.append(float(loss.item()))
        forwarded = time.perf_counter()
        loss.backward()
        back = time.perf_counter()
        step()
        times.append((forwarded - start, back - forwarded, time.perf_counter() - back))
    best = [1e3 * min(column) for column in zip(*times[1:], strict=True)]
    return {**dict(zip(PARTS, best, strict=True)), "losses": losses}


def ours(job: dict) -> dict:
    import boostr
    from boostr import train

    config = SHAPES[job["shape"]] | COMMON
    model: Any = boostr.create("llama", config, backend="numpy")
    if not Path(job["folder"]).exists():
        model.save(job["folder"])
    batch = train.pack(tokens(config["vocab_size"]))
    optimizer = train.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return measure(lambda: model.loss(batch), step, job["repetitions"])


def theirs(job: dict) -> dict:
    """transformers; runs inside TORCH_PYTHON."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    ids = torch.tensor(tokens(model.config.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return measure(lambda: model(input_ids=ids, labels=ids).loss, step, job["repetitions"])


def run(python: str, worker: str, job: dict) -> dict:
    """A worker in a process of its own."""
    command = [python, str(Path(__file__).resolve()), "--worker", worker, "--job", json.dumps(job)]
    environment = {**os.environ, "BOOSTR_NUM_THREADS": str(job["threads"])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def best(runs: list[dict]) -> dict:
    found = {part: min(run[part] for run in runs) for part in PARTS}
    return {**found, "step": sum(found.values()), "losses": runs[0]["losses"]}


def compare(shape: str, options: argparse.Namespace) -> None:
    torch = os.environ.get("TORCH_PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        job = {"shape": shape, "threads": options.threads, "repetitions": options.repetitions,
               "folder": str(Path(folder) / "model")}  # fmt: skip
        runs: tuple[list[dict], list[dict]] = ([], [])
        for _ in range(options.rounds):
            runs[0].append(run(sys.executable, "ours", job))
            if torch:
                runs[1].append(run(torch, "theirs", job))
    rows = {"boostr": best(runs[0])} | ({"torch": best(runs[1])} if torch else {})
    for name, row in rows.items():
        cells = "".join(f"{row[part]:10.1f}" for part in (*PARTS, "step"))
        print(f"{shape:6} {name:8}{cells}  loss {row['losses'][0]:.5f} -> {row['losses'][-1]:.5f}")
    if torch:
        ratios = [rows["torch"][part] / rows["boostr"][part] for part in (*PARTS, "step")]
        verdict = f"target {TARGET}, stretch {STRETCH}"
        print(f"{shape:6} {'times':8}{''.join(f'{r:10.2f}' for r in ratios)}  {verdict}")
        apart = max(abs(a - b) for a, b in zip(*(r["losses"] for r in rows.values()), strict=True))
        print(f"{shape:6} losses of {options.repetitions + 1} steps: at most {apart:.1e} apart")
    else:
        print(f"{shape:6} torch    skipped: set TORCH_PYTHON")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--worker", choices=("ours", "theirs"))
    parser.add_argument("--job", type=json.loads)
    options = parser.parse_args()
    if options.worker:
        work = ours if options.worker == "ours" else theirs
        print(json.dumps(work(options.job)))
        return
    print(f"{'':15}" + "".join(f"{part + ' ms':>10}" for part in (*PARTS, "step")))
    for shape in [options.only] if options.only else SHAPES:
        compare(shape, options)


if __name__ == "__main__":
    main()
