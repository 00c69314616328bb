"""Sentence embeddings on the CPU: boostr beside sentence-transformers on torch, in one run.

    python benchmarks/cpu_embed.py FOLDER [--threads 2] [--sentences 256] [--repetitions 3]

FOLDER is a sentence-transformers one such as all-MiniLM-L6-v2; TORCH_PYTHON names the interpreter
of the peer (see peers.py). Both embed the same sentences of 8 to 200 tokens, texts in and vectors
out, in turns, each round in a process of its own; the figures are the best repetition of all, as
other work on a shared machine only ever slows one down. Then the share of the time that ours spends
in each part, and how far the two are apart.
"""

from __future__ import annotations

import argparse
import json
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

    model: Any = boostr.load(job["folder"], backend="numpy")
    texts = sentences(job["sentences"])
    rates = peers.rate(lambda: len(model.embed(texts)), job["repetitions"])
    start = time.perf_counter()
    found = model.encode(texts, "embed")
    tokenized = time.perf_counter()
    model.hidden([encoding.ids for encoding in found])
    ended = time.perf_counter()
    tokens = sum(len(encoding.ids) for encoding in found)
    return {
        "best": rates[2], "tokens": tokens, "vectors": model.embed(texts[:8]).tolist(),
        "tokenizer": tokenized - start, "model": ended - tokenized,
    }  # fmt: skip


def theirs(job: dict) -> dict:
    """Sentences per second of sentence-transformers; runs inside TORCH_PYTHON."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(job["threads"])
    model = SentenceTransformer(job["folder"], device="cpu")
    texts = sentences(job["sentences"])
    rates = peers.rate(lambda: len(model.encode(texts)), job["repetitions"])
    return {"best": rates[2], "vectors": model.encode(texts[:8]).tolist()}


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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(
            json.dumps(
                {"ours": ours, "theirs": theirs}[arguments.worker](json.loads(arguments.job))
            )
        )
        return
    if arguments.folder is None:
        parser.error("FOLDER is missing")
    job = {
        "folder": str(arguments.folder), "threads": arguments.threads,
        "sentences": arguments.sentences, "repetitions": arguments.repetitions,
    }  # fmt: skip
    python = os.environ.get("TORCH_PYTHON")
    mine = peer = None
    for _ in range(ROUNDS):
        mine = better(mine, run(sys.executable, "ours", job))
        if python:
            peer = better(peer, run(python, "theirs", job))
    report(mine, peer)


def report(mine: dict | None, peer: dict | None) -> None:
    if mine is None:
        return
    print("| | sentences/s | tokenizer | model |\n|---|---|---|---|")
    whole = mine["tokenizer"] + mine["model"]
    parts = " | ".join(f"{mine[part] / whole:.0%}" for part in ("tokenizer", "model"))
    print(f"| boostr | {mine['best']:.1f} | {parts} |  ({mine['tokens']} tokens)")
    if peer is None:
        print("| sentence-transformers | skipped: set TORCH_PYTHON | | |")
        return
    apart = max(
        abs(a - b)
        for rows in zip(mine["vectors"], peer["vectors"], strict=True)
        for a, b in zip(*rows, strict=True)
    )
    print(f"| sentence-transformers | {peer['best']:.1f} | | |")
    print(f"\n{mine['best'] / peer['best']:.2f}× (target {TARGET}×, stretch {STRETCH}×); "
          f"vectors differ by at most {apart:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
