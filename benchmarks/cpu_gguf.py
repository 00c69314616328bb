"""Decoding and prompts of GGUF files on the CPU: boostr and llama.cpp on the same files, in turns.

    python benchmarks/cpu_gguf.py FOLDER [--model gemma-270M] [--types Q8_0,Q4_0] [--threads 2]
        [--prompt 512] [--new 64] [--repetitions 3] [--rounds 2]

random_gguf.py writes what FOLDER lacks (it needs the package gguf); LLAMA_BENCH names the peer (see
peers.py). Each side runs in a process of its own, one after the other; the figures are the best
repetition of all rounds, as other work on a shared machine only ever slows one down. The floor of
decoding is the weights' bytes at the bandwidth that this machine reads with these threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import peers
import random_gguf
from model_shapes import MODELS

TARGET, STRETCH = 1.2, 1.6


def ours(path: Path, options: argparse.Namespace) -> dict[str, dict]:
    """`boostr bench` of a file, by test."""
    command = [sys.executable, "-m", "boostr", "bench", "-m", str(path), "--backend", "numpy"]
    command += ["-p", str(options.prompt), "-n", str(options.new), "-r", str(options.repetitions)]
    command += ["-t", str(options.threads), "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {row["test"]: {**row, "best": max(row["samples_ts"])} for row in json.loads(done.stdout)}


def theirs(path: Path, options: argparse.Namespace) -> dict[str, dict]:
    """llama-bench of it, by test; nothing where it is missing."""
    try:
        rates = peers.llama_bench(
            path, threads=options.threads, prompt=options.prompt, generate=options.new,
            repetitions=options.repetitions,
        )  # fmt: skip
    except peers.PeerMissingError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return {}
    return {rate.test: {"best": rate.best} for rate in rates}


def merge(best: dict[str, dict], found: dict[str, dict]) -> None:
    for test, row in found.items():
        if test not in best or row["best"] > best[test]["best"]:
            best[test] = row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="gemma-270M")
    parser.add_argument("--types", default="Q8_0,Q4_0")
    for name, value in (("threads", 2), ("prompt", 512), ("new", 64), ("repetitions", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print("| type | test | boostr, tok/s | of the floor | llama.cpp | ratio |")
    print("|---|---|---|---|---|---|")
    for kind in options.types.split(","):
        path = options.folder / f"{options.model}-{kind}.gguf"
        if not path.exists():
            random_gguf.write(options.model, kind, path)
        mine: dict[str, dict] = {}
        peer: dict[str, dict] = {}
        for _ in range(options.rounds):
            merge(mine, ours(path, options))
            merge(peer, theirs(path, options))
        for test, row in mine.items():
            share = f"{row['bandwidth_share']:.0%}" if row["bandwidth_share"] else ""
            other = peer.get(test)
            cells = (f"{other['best']:.1f}", f"{row['best'] / other['best']:.2f}×") if other else ()
            print(f"| {kind} | {test} | {row['best']:.1f} | {share} | {' | '.join(cells)} |")
    print(f"\ndecoding: target {TARGET}×, stretch {STRETCH}×")


if __name__ == "__main__":
    main()
