"""Several sequences at once on the CPU: boostr and llama.cpp on one GGUF file, by rows of a step.

    python benchmarks/cpu_rows.py MODEL.gguf [--rows 1,4,8,16,32] [--depth 128] [--new 32]
        [--threads 2] [--rounds 3]

Each side is set against its own steps of the first of these, one row. The peer comes from
LLAMA_BATCHED_BENCH (see peers.py). It runs alone, in a process that has ended before ours begins,
so that the threads of neither wait where the other's compute; figures are the best of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peers

# against one row
TARGETS = {4: (2.9, 3.2), 8: (3.8, 4.2), 16: (4.5, 5.5), 32: (5.0, 7.0)}


def measure(options: argparse.Namespace) -> dict[int, float]:
    """Tokens per second of steps of so many rows, behind `depth` tokens each."""
    import boostr
    from boostr.engine.fixed_rows import FixedRows

    model: Any = boostr.load(options.model, backend="numpy")
    found = {}
    for count in options.rows:
        fixed = FixedRows(model.runner, count, options.depth + 2 * options.new + 8)
        best = 0.0
        for _ in range(2):  # the first records the step
            fixed.begin([1] * count, [options.depth] * count)
            fixed.step()
            start = time.perf_counter()
            for _ in range(options.new):
                fixed.step()
            best = count * options.new / (time.perf_counter() - start)
        found[count] = best
    return found


def ours(options: argparse.Namespace) -> dict[int, float]:
    """`measure` in a process of its own."""
    environment = {**os.environ, "BOOSTR_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {int(rows): rate for rows, rate in json.loads(done.stdout.splitlines()[-1]).items()}


def theirs(options: argparse.Namespace) -> dict[int, float]:
    try:
        return peers.batched_bench(
            options.model, rows=options.rows, depth=options.depth, new=options.new,
            threads=options.threads,
        )  # fmt: skip
    except peers.PeerMissingError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--rows", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8, 16, 32]
    )
    for name, value in (("depth", 128), ("new", 32), ("threads", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    best: dict[tuple[str, int], float] = {}
    for _ in range(options.rounds):
        for side, run in (("boostr", ours), ("llama.cpp", theirs)):
            for rows, rate in run(options).items():
                best[side, rows] = max(rate, best.get((side, rows), 0.0))
    print(
        "| rows | boostr, tok/s | of its one row | llama.cpp | of its one row | target, stretch |"
    )
    print("|---|---|---|---|---|---|")
    for rows in options.rows:
        cells = []
        for side in ("boostr", "llama.cpp"):
            rate, one = best.get((side, rows)), best.get((side, options.rows[0]))
            cells += [f"{rate:.1f}", f"{rate / one:.2f}×"] if rate and one else ["", ""]
        aims = ", ".join(f"{aim}×" for aim in TARGETS.get(rows, ()))
        print(f"| {rows} | {' | '.join(cells)} | {aims} |")


if __name__ == "__main__":
    main()
