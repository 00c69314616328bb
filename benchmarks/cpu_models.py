"""SmolLM2-135M on the CPU: boostr beside llama.cpp and transformers, in one run.

    python benchmarks/cpu_models.py FOLDER [--threads 2] [--repetitions 5] [--rounds 2]

FOLDER is what make_models.py writes; LLAMA_BENCH and TORCH_PYTHON name the peers (see peers.py).
For each row ours and the peer run in turns, each in processes of its own, `rounds` times; the
figures are the best repetition of each, as other work on a shared machine only ever slows one down,
and the mean and standard deviation of the better round. The floor of decoding is the weights' bytes
at the bandwidth that this machine reads with these threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import peers

MB = 1e6


@dataclass(frozen=True)
class Row:
    """Ours against one peer. `model` and `options` are ours; `peer` is (engine, file, test)."""

    what: str
    model: str
    options: tuple[str, ...]
    test: str
    peer: tuple[str, str]
    target: float
    stretch: float


DECODE = "tg128"
ROWS = (
    Row("decode, Q8_0", "SmolLM2-135M-Q8_0.gguf", (), DECODE, ("llama.cpp", "Q8_0"), 1.5, 2.2),
    Row("decode, int8 per channel", "smollm2-bf16",
        ("--quantize", "int8", "--quantize-embeddings", "int8"), DECODE, ("llama.cpp", "Q8_0"),
        1.6, 2.3),
    Row("decode, int8, bf16 head", "smollm2-bf16",
        ("--quantize", "int8"), DECODE, ("llama.cpp", "Q8_0"), 1.6, 2.3),
    Row("decode, bf16", "smollm2-bf16", (), DECODE, ("llama.cpp", "F16"), 1.2, 1.6),
    Row("decode, f16", "smollm2-bf16", ("--dtype", "f16"), DECODE, ("llama.cpp", "F16"), 1.2, 1.6),
    Row("decode, Q4_1", "SmolLM2-135M-Q4_1.gguf", (), DECODE, ("llama.cpp", "Q4_1"), 1.1, 1.7),
    Row("decode, f32", "smollm2-f32", (), DECODE, ("transformers", "float32"), 3, 3.8),
    Row("prefill 512, w8a8", "smollm2-bf16",
        ("--quantize", "w8a8"), "pp512", ("best", "any"), 1.2, 1.5),
    Row("prefill 512, Q8_0", "SmolLM2-135M-Q8_0.gguf", (), "pp512", ("best", "any"), 1.2, 1.5),
    Row("prefill 512, f32", "smollm2-f32", (), "pp512", ("best", "any"), 1.2, 1.5),
)  # fmt: skip
PEERS = (
    ("llama.cpp", "Q8_0"), ("llama.cpp", "F16"), ("llama.cpp", "BF16"), ("llama.cpp", "Q4_1"),
    ("transformers", "float32"), ("transformers", "bfloat16"),
)  # fmt: skip


def run_peer(engine: str, weights: str, folder: Path, options: dict) -> list[peers.Rate]:
    if engine == "llama.cpp":
        return peers.llama_bench(folder / f"SmolLM2-135M-{weights}.gguf", **options)
    short = {"float32": "f32", "bfloat16": "bf16"}[weights]
    return peers.transformers_bench(folder / f"smollm2-{short}", weights, **options)


def run_ours(row: Row, folder: Path, options: dict) -> dict:
    """One row of `boostr bench`, in its own process."""
    sizes = ("512", "0") if row.test == "pp512" else ("0", "128")
    command = [sys.executable, "-m", "boostr", "bench", "-m", str(folder / row.model), *row.options]
    command += ["-p", sizes[0], "-n", sizes[1], "-r", str(options["repetitions"])]
    command += ["-t", str(options["threads"]), "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (result,) = json.loads(done.stdout)
    return result


def better(old: dict | None, new: dict) -> dict:
    return new if old is None or new["best"] > old["best"] else old


def measure(folder: Path, rounds: int, options: dict) -> tuple[dict, dict]:
    """(ours by row, peers by (engine, weights, test)), the better of all rounds."""
    ours: dict = {}
    theirs: dict = {}
    for _ in range(rounds):
        for engine, weights in PEERS:
            try:
                rates = run_peer(engine, weights, folder, options)
            except peers.PeerMissingError as missing:
                print(f"skipped {engine} {weights}: {missing}", file=sys.stderr)
                continue
            for rate in rates:
                key = (engine, weights, rate.test)
                found = {"best": rate.best, "mean": rate.mean, "sd": rate.sd}
                theirs[key] = better(theirs.get(key), found)
        for row in ROWS:
            result = run_ours(row, folder, options)
            found = {"best": max(result["samples_ts"]), "mean": result["avg_ts"],
                     "sd": result["stddev_ts"], **result}  # fmt: skip
            ours[row.what] = better(ours.get(row.what), found)
    return ours, theirs


def peer_of(row: Row, theirs: dict) -> tuple[str, dict] | None:
    engine, weights = row.peer
    if engine != "best":
        found = theirs.get((engine, weights, row.test))
        return (f"{engine} {weights}", found) if found else None
    rows = [(f"{e} {w}", r) for (e, w, test), r in theirs.items() if test == row.test]
    return max(rows, key=lambda r: r[1]["best"], default=None)


def print_table(ours: dict, theirs: dict) -> None:
    print("| what | boostr, tok/s | peer | its tok/s | ratio | target / stretch | of the floor |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        mine, peer = ours[row.what], peer_of(row, theirs)
        share = "" if mine["bandwidth_share"] is None else f"{mine['bandwidth_share']:.0%}"
        name, rate, ratio = "missing", "", ""
        if peer:
            name = peer[0]
            rate = f"{peer[1]['best']:.0f} ({peer[1]['mean']:.0f} ± {peer[1]['sd']:.0f})"
            ratio = f"{mine['best'] / peer[1]['best']:.2f}×"
        print(f"| {row.what} | {mine['best']:.0f} ({mine['mean']:.0f} ± {mine['sd']:.0f}) | {name} "
              f"| {rate} | {ratio} | {row.target}× / {row.stretch}× | {share} |")  # fmt: skip
    step = ours["decode, Q8_0"]
    outside = step["step_outside_kernels_seconds"]
    print(f"\nPython in a decode step (Q8_0): {outside * 1e6:.0f} µs of "
          f"{step['step_seconds'] * 1e3:.2f} ms = {outside / step['step_seconds']:.1%}; "
          f"read bandwidth {step['read_bytes_per_second'] / 1e9:.1f} GB/s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    options = {"threads": arguments.threads, "repetitions": arguments.repetitions}
    print_table(*measure(arguments.folder, arguments.rounds, options))


if __name__ == "__main__":
    main()
