"""From the command line to the first token, what compiling adds the first time, and peak memory.

    python benchmarks/cpu_start.py MODEL... [--repetitions 5]

MODEL is a folder or a .gguf file. Each row is `boostr run` in a process of its own: warm is the
best of the repetitions with compiled kernels in the cache, cold is one run with an empty cache,
both from the start of the process to the first byte of text. Memory is the process's peak resident
size less the bytes of the weights, which are mapped from the file and count as resident.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "The capital of France is"


def run(model: str, cache: Path, tokens: int) -> tuple[float, float]:
    """(seconds to the first text, peak resident MB) of one `boostr run`."""
    command = [sys.executable, "-m", "boostr", "run", "-m", model, PROMPT, "--raw"]
    start = time.perf_counter()
    child = subprocess.Popen(
        [*command, "--max-tokens", str(tokens)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "BOOSTR_CACHE": str(cache)},
    )
    assert child.stdout is not None
    child.stdout.read(1)
    first = time.perf_counter() - start
    child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}")
    return first, usage.ru_maxrss / 1024


def weight_megabytes(model: str) -> float:
    path = Path(model)
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    print("| model | first token, warm | cold | compiling adds | memory over weights |")
    print("|---|---|---|---|---|")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as cache:
            cold, _ = run(model, Path(cache), 1)
            warm = min(run(model, Path(cache), 1)[0] for _ in range(arguments.repetitions))
            run(model, Path(cache), 128)  # compiles what only decoding needs
            _, peak = run(model, Path(cache), 128)
        over = peak - weight_megabytes(model)
        print(
            f"| {Path(model).name} | {warm:.2f} s | {cold:.2f} s | {cold - warm:.1f} s "
            f"| +{over:.0f} MB |"
        )


if __name__ == "__main__":
    main()
