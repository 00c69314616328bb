"""Sentence embeddings on the CPU: boostr beside sentence-transformers on torch, in one run.

    python benchmarks/cpu_embed.py FOLDER [--threads 2] [--sentences 256] [--repetitions 3]
        [--forms float32,bfloat16,int8-g32,w8a8]

FOLDER is a sentence-transformers one such as all-MiniLM-L6-v2; TORCH_PYTHON names the interpreter
of the peer (see peers.py), which runs in float32 and in bfloat16. All embed the same sentences of 8
to 200 tokens, texts in and vectors out, in turns, each round in a process of its own; the figures
are the best repetition of all, as other work on a shared machine only ever slows one down. Beside
them the share of the time that the tokenizer takes, and the least cosine with vectors in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peers

ROUNDS = 2
TARGET, STRETCH = 2, 4
FORMS = ("float32", "bfloat16", "int8-g32", "w8a8")
PEERS = ("float32", "bfloat16")
WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
    *("place", "case", "week", "company", "system", "program", "question", "work", "night"),
)


def sentences(count: int) -> list[str]:
    """Of 6 to 198 words that are a token each, with [CLS] and [SEP] 8 to 200."""
    draws = random.Random(0)
    return [" ".join(draws.choices(WORDS, k=draws.randint(6, 198))) for _ in range(count)]


def ours(job: dict) -> dict:
    """Sentences per second of boostr, and the parts of the time."""
    import boostr

    form = job["form"]
    options: dict = {"dtype" if form in PEERS else "quantize": form}
    model: Any = boostr.load(job["folder"], backend="numpy", **options)
    texts = sentences(job["sentences"])
    rates = peers.rate(lambda: len(model.embed(texts)), job["repetitions"])
    start = time.perf_counter()
    found = model.encode(texts, "embed")
    tokenized = time.perf_counter()
    model.hidden([encoding.ids for encoding in found])
    ended = time.perf_counter()
    tokens = sum(len(encoding.ids) for encoding in found)
    return {
        "best": rates[2], "tokens": tokens, "vectors": model.embed(texts[:64]).tolist(),
        "tokenizer": (tokenized - start) / (ended - start),
    }  # fmt: skip


def theirs(job: dict) -> dict:
    """Sentences per second of sentence-transformers; runs inside TORCH_PYTHON."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(job["threads"])
    dtype = {"dtype": getattr(torch, job["form"])}
    model = SentenceTransformer(job["folder"], device="cpu", model_kwargs=dtype)
    texts = sentences(job["sentences"])
    rates = peers.rate(lambda: len(model.encode(texts)), job["repetitions"])
    return {"best": rates[2], "vectors": model.encode(texts[:64]).tolist()}


def run(python: str, worker: str, job: dict) -> dict:
    """A worker in a process of its own."""
    command = [python, str(Path(__file__).resolve()), "--worker", worker, "--job", json.dumps(job)]
    threads = {"BOOSTR_NUM_THREADS": str(job["threads"])}
    environment = {**os.environ, **threads}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def better(old: dict | None, new: dict) -> dict:
    return new if old is None or new["best"] > old["best"] else old


def main() -> None:
    parser = argparse.ArgumentParser(description="boostr beside sentence-transformers")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker = {"ours": ours, "theirs": theirs}[arguments.worker]
        print(json.dumps(worker(json.loads(arguments.job))))
        return
    if arguments.folder is None:
        parser.error("FOLDER is missing")
    job = {
        "folder": str(arguments.folder), "threads": arguments.threads,
        "sentences": arguments.sentences, "repetitions": arguments.repetitions,
    }  # fmt: skip
    rows = [(sys.executable, "ours", form) for form in arguments.forms.split(",")]
    python = os.environ.get("TORCH_PYTHON")
    if python:
        rows += [(python, "theirs", form) for form in PEERS]
    else:
        print("sentence-transformers skipped: set TORCH_PYTHON", file=sys.stderr)
    best: dict[tuple[str, str], dict] = {}
    for _ in range(ROUNDS):
        for interpreter, worker, form in rows:
            found = run(interpreter, worker, {**job, "form": form})
            best[worker, form] = better(best.get((worker, form)), found)
    report(best)


def report(best: dict[tuple[str, str], dict]) -> None:
    truth = best.get(("theirs", "float32")) or next(iter(best.values()))
    ratios = [best[key]["best"] for form in PEERS if (key := ("theirs", form)) in best]
    print(f"{next(iter(best.values()))['tokens']} tokens; target {TARGET}×, stretch {STRETCH}×\n")
    print("| | form | sentences/s | of torch float32, bfloat16 | tokenizer | least cosine |")
    print("|---|---|---|---|---|---|")
    for (worker, form), row in best.items():
        name = "boostr" if worker == "ours" else "sentence-transformers"
        against = ", ".join(f"{row['best'] / peer:.2f}×" for peer in ratios)
        share = f"{row['tokenizer']:.0%}" if "tokenizer" in row else ""
        cosine = min(map(cosine_of, row["vectors"], truth["vectors"]))
        print(f"| {name} | {form} | {row['best']:.1f} | {against} | {share} | {cosine:.5f} |")


def cosine_of(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


if __name__ == "__main__":
    main()
